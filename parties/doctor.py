"""Looks at one party's place in a deployment, and says what to fix before anybody sends a share.

Each check is one line: what was looked at, what was found, what to do. What one check needs and another found broken is
left out. Nothing secret is read beyond this party's own key, which is only compared with its certificate.
"""

from __future__ import annotations

import datetime
import errno
import ipaddress
import os
import resource
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cryptography import x509

from ..protocols.errors import BlindformerError, PeerError, PeerTimeout
from .certificates import ROLES, CertificateError, client_context, describe, server_context
from .config import Address, ConfigError, Role, Settings, load_settings
from .probe import Facts, Probed, my_facts, probe
from .spool import Spool, SpoolError
from .spool.spool import LEDGER
from .tls import dial

Status = Literal["good", "warning", "bad"]
EXPIRY_DAYS = 14
CLOCK_SECONDS = 60.0
SPOOL_QUERIES = 10  # room that a spool should have, in queries
ANSWER_SECONDS = 10.0  # for a peer to answer at all
SOCKETS_SPARE = 64  # open files of a service beside its connections
PROGRAMS_ASKED = 64
GB = 1e9


@dataclass(frozen=True)
class Check:
    """One line. `figures`: what a program may want to read of it."""

    name: str
    status: Status
    found: str
    fix: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


def peers_of(role: Role, topology: str) -> tuple[Role, ...]:
    """Whom a party dials. The dealer only listens."""
    helped = topology == "helper"
    dials: dict[str, tuple[Role, ...]] = {
        "client": ("server", "helper") if helped else ("server", "dealer"),
        "server": ("dealer",),
        "helper": ("server", "dealer"),
    }
    return dials.get(role, ())


def guess_role(settings: Settings) -> Role:
    """The role whose key lies in the folder of certificates. Errors: ConfigError if that is not one alone."""
    folder = settings.certificates.folder
    found = [role for role in ROLES if (folder / f"{role}.key").is_file()]
    if len(found) != 1:
        held = f"holds the keys of {', '.join(found)}" if found else "holds no party's key"
        raise ConfigError([f"{folder} {held}, so it does not say which party this is"])
    return found[0]  # type: ignore[return-value]


def examine(path: Path | None, role: Role | None = None, seconds: float = 3.0) -> Iterator[Check]:
    """All checks of one party, as they are made. `seconds`: how long to measure a peer's bandwidth, each way."""
    try:
        settings = load_settings(path)
    except ConfigError as error:
        fix = "correct it; docs/blindformer.toml shows every key"
        yield from (Check("config", "bad", problem, fix) for problem in error.problems)
        return
    try:
        role = role or guess_role(settings)
    except ConfigError as error:
        yield Check("party", "bad", str(error), f"name it with --party: {', '.join(ROLES)}")
        return
    where = _shown(settings.file) if settings.file else "no file: the defaults"
    yield Check("config", "good", f"{role} of {where}", figures={"shared": settings.shared_hash()})
    yield from _certificates(settings, role)
    yield from _machine(settings, role)
    programs = []
    for check in _artifacts(settings, role):
        programs = check.figures.get("programs", programs)
        yield check
    if role != "client":
        yield from _listening(settings, role)
    for peer in peers_of(role, settings.session.topology):
        yield from _peer(settings, role, peer, programs, seconds)


# Certificates.


def _certificates(settings: Settings, role: Role) -> Iterator[Check]:
    folder = settings.certificates.folder
    try:
        # Listening and dialling hold a certificate to the same things: files, role, dates, CA, key and its mode.
        (client_context if role == "client" else server_context)(folder, role)
        own = next(row for row in describe(folder) if row.file.name == f"{role}.pem")
    except CertificateError as error:
        what, _, fix = str(error).partition("; ")
        yield Check("certificate", "bad", what, fix)
        return
    what = f"{_shown(own.file)}: of {role}, from the CA beside it; its key is this party's alone"
    yield Check("certificate", "good", what)
    yield _expiry(own.file, folder / "ca.pem")
    if role != "client":
        yield _hosts(settings.address(role), own.hosts, role)
    others = [f"{name}.key" for name in ("ca", *ROLES) if name != role and (folder / f"{name}.key").exists()]
    if others:
        fix = "where others have machines of their own, keep this party's key only, and ca.key offline"
        yield Check("keys", "warning", f"{', '.join(others)} in {_shown(folder)} too", fix)


def _expiry(*files: Path) -> Check:
    now = datetime.datetime.now(datetime.UTC)
    certificates = [x509.load_pem_x509_certificate(file.read_bytes()) for file in files]
    starts = max(certificate.not_valid_before_utc for certificate in certificates)
    ends = min(certificate.not_valid_after_utc for certificate in certificates)
    days = (ends - now).total_seconds() / 86400
    figures = {"expires": ends.isoformat(), "days_left": days}
    if starts > now:
        what = f"valid from {starts:%Y-%m-%d %H:%M} UTC, and this machine's clock says {now:%Y-%m-%d %H:%M}"
        return Check("dates", "bad", what, "set the clock (timedatectl)", figures)
    if days <= 0:
        return Check("dates", "bad", f"expired on {ends:%Y-%m-%d}", "make new certificates, or set the clock", figures)
    what = f"good until {ends:%Y-%m-%d}, {days:.0f} days"
    if days < EXPIRY_DAYS:
        return Check("dates", "warning", what, "make new ones before that, see docs/deploy.md", figures)
    return Check("dates", "good", what, figures=figures)


def _hosts(address: Address, hosts: tuple[str, ...], role: Role) -> Check:
    """Whether those who dial `address` will find it in the certificate."""
    if any(_same_host(address.host, host) for host in hosts):
        return Check("host names", "good", f"{address.host} is in the certificate")
    what = f"others dial {address.host}, and the certificate names {', '.join(hosts) or 'no host'}"
    fix = f"make it with --host {address.host}, or correct parties.{role}.address"
    return Check("host names", "bad", what, fix)


def _same_host(dialled: str, named: str) -> bool:
    try:
        return ipaddress.ip_address(dialled) == ipaddress.ip_address(named)
    except ValueError:
        pass
    dialled, named = dialled.lower().rstrip("."), named.lower().rstrip(".")
    return dialled == named or (named.startswith("*.") and dialled.partition(".")[2] == named[2:])


# This machine.


def _machine(settings: Settings, role: Role) -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if role == "client":
        yield Check("cores", "good", str(cores), figures={"cores": cores})
        return
    service = getattr(settings, role)
    what = f"{cores}, for {service.workers or cores} queries at once"
    yield Check("cores", "good", what, figures={"cores": cores})
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * service.sessions + service.queue + SOCKETS_SPARE
    if files != resource.RLIM_INFINITY and files < needed:
        what = f"{files}, where {service.sessions} sessions may need {needed}"
        yield Check("open files", "warning", what, f"raise the limit (ulimit -n {needed}, or LimitNOFILE={needed})")


def _artifacts(settings: Settings, role: Role) -> Iterator[Check]:
    if role == "dealer":
        yield Check("artifacts", "good", "a dealer needs none: it is told each program by the server")
        return
    from ..models.artifacts import load_programs
    from ..models.handover import hand_over
    from ..models.pricing import price

    part = getattr(settings, role)
    try:
        found = load_programs(part.folder)
    except BlindformerError as error:
        what, _, fix = str(error).partition("; ")
        yield Check("artifacts", "bad", what, fix or "compile the model, and copy this party's part here")
        return
    helped = settings.session.topology == "helper"
    programs = [hand_over(program) if helped else program for program in found.values()]
    prices = [price(program) for program in programs]
    lengths = ", ".join(str(length) for length in found if length)
    what = f"{_shown(part.folder)}: {f'lengths {lengths}' if lengths else 'one program'}"
    yield Check("artifacts", "good", what, figures={"programs": [program.hash() for program in programs]})
    if part.spool is not None:
        # A correlation made ahead takes the server the dealer's corrections, the client a key.
        query = max(found.offline_bytes for found in prices) if role == "server" else 4096
        yield _room("spool", part.spool, query, f"{role}.spool")
        if (part.spool / LEDGER).is_file():
            yield _ledger(part.spool)
    if role == ("helper" if helped else "client"):
        yield _room("cache", part.cache, max(found.setup_bytes for found in prices), f"{role}.cache", wanted=1)


def _ledger(folder: Path) -> Check:
    try:
        left = Spool(folder, must_exist=True).left()
    except SpoolError as error:
        what, _, fix = str(error).partition("; ")
        return Check("ledger", "bad", what, fix or "see docs/operations.md")
    return Check("ledger", "good", f"correlations made ahead and ready: {left}", figures={"left": left})


def _room(name: str, folder: Path, each: int, key: str, wanted: int = SPOOL_QUERIES) -> Check:
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "bad", f"{there} cannot be written", f"give this user the folder, or set {key}")
    free = shutil.disk_usage(there).free
    figures = {"free_bytes": free, "bytes_each": each}
    what = f"{_shown(folder)}: {free / GB:.1f} GB free"
    if each * wanted <= free:
        return Check(name, "good", what, figures=figures)
    what += f"; {wanted} need {each * wanted / GB:.1f} GB"
    return Check(name, "bad" if free < each else "warning", what, f"make room, or set {key}", figures)


def _shown(path: Path) -> str:
    """A path as a reader would write it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _listening(settings: Settings, role: Role) -> Iterator[Check]:
    listen, address = getattr(settings, role).listen, settings.address(role)
    what = f"{listen}, dialled at {address}"
    if _loopback(listen.host) and not _loopback(address.host):
        fix = f'set {role}.listen to "0.0.0.0:{listen.port}" or "[::]:{listen.port}"'
        yield Check("listening", "bad", f"{what}: no other machine can reach it", fix)
        return
    if listen.port not in (0, address.port):
        what += " (another port: something has to forward it)"
    try:
        family, _, _, _, bound = socket.getaddrinfo(*listen, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        socket.create_server(bound[:2], family=family).close()
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            fix = f"set {role}.listen to an address of this machine, and a port above 1023"
            yield Check("listening", "bad", f"{listen}: {error.strerror}", fix)
            return
        what += "; in use now: the service seems to run"
    yield Check("listening", "good", what)
    metrics = getattr(settings, role).metrics
    if metrics is not None and not _loopback(metrics.host):
        fix = "listen on 127.0.0.1, or let a firewall say who may"
        yield Check("metrics", "warning", f"{metrics}: anybody who reaches it reads them", fix)


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


# The others.


def _peer(settings: Settings, role: Role, peer: Role, programs: list[str], seconds: float) -> Iterator[Check]:
    address = settings.address(peer)
    try:
        context = client_context(settings.certificates.folder, role)
    except CertificateError:
        return  # said already
    mine = my_facts(role, settings.shared_hash(), programs[:PROGRAMS_ASKED])
    try:
        with dial(*address, context, peer, timeout=ANSWER_SECONDS, handshake_seconds=ANSWER_SECONDS) as channel:
            found = probe(channel, mine, seconds)
    except PeerTimeout as error:
        fix = f"{error.remedy}; let firewalls pass TCP port {address.port}"
        yield Check(f"{peer}: reached", "bad", error.what, fix)
        return
    except PeerError as error:
        yield Check(f"{peer}: reached", "bad", error.what, error.remedy)
        return
    yield Check(f"{peer}: reached", "good", f"{address}, a {peer} of this CA, TLS 1.3")
    yield from _agreement(peer, mine, found)
    yield _network(peer, found)


def _agreement(peer: Role, mine: Facts, found: Probed) -> Iterator[Check]:
    theirs = found.facts
    if theirs.blindformer == mine.blindformer:
        yield Check(f"{peer}: version", "good", mine.blindformer)
    else:
        what = f"{theirs.blindformer} there, {mine.blindformer} here"
        yield Check(f"{peer}: version", "bad", what, "install the same version on both sides")
    if mine.config and theirs.config:
        same = mine.config == theirs.config
        what = "the same [session] and [parties]" if same else "another [session] or [parties] there"
        fix = "" if same else "give all parties one blindformer.toml; flags count too"
        yield Check(f"{peer}: config", "good" if same else "bad", what, fix)
    if mine.programs and peer in ("server", "helper"):
        known = len(theirs.programs)
        what = f"{known} of {len(mine.programs)} known there"
        fix = "" if known == len(mine.programs) else "give both sides the parts of one compilation"
        yield Check(f"{peer}: programs", "bad" if fix else "good", what, fix)
    ahead = found.clock_s
    off = abs(ahead) > CLOCK_SECONDS + found.rtt_s
    what = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's" if off else "as here"
    fix = "set both clocks (timedatectl): certificates are good for a time" if off else ""
    yield Check(f"{peer}: clock", "warning" if off else "good", what, fix, {"clock_s": ahead})


def _network(peer: Role, found: Probed) -> Check:
    what = f"{found.rtt_s * 1e3:.1f} ms there and back, {found.up / 1e6:.0f} Mbit/s there, {found.down / 1e6:.0f} back"
    return Check(f"{peer}: network", "good", what, figures={"rtt_s": found.rtt_s, "up": found.up, "down": found.down})
