"""Checks one party of a deployment, and says what to fix before anybody sends a share.

Each check is one line: its subject, what it found, what to do. A check is left out if what it needs is broken. Nothing
secret is read but this party's own key, which is only compared with its certificate.
"""

from __future__ import annotations

import datetime
import errno
import ipaddress
import resource
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography import x509

from ...cores import cores
from ...levels import level, slow
from ...protocols.devices import CPU, DeviceError, find_device, room
from ..addresses import is_loopback
from ..certificates import EXPIRY_DAYS
from ..certificates.issuing import ROLES, describe
from ..certificates.tls_folder import CA_KEY, CertificateError, client_context, server_context
from ..config import Address, ConfigError, Role, Settings, load_settings
from ..registry import find_served, resolve
from ..transport.frames import NEW_CERTIFICATE
from .checks import GB, Check, ProtocolChecks, failed, shown

SOCKETS_SPARE = 64  # open files of a service beside its connections


def peers(role: Role, helpers: tuple[Role, ...], topology: str) -> tuple[Role, ...]:
    """Whom a party dials. `helpers`: the roles that a server needs beside it, which only listen. With topology "helper"
    a second server does the client's part; with "pair" there is nobody but the two."""
    helpers = () if topology == "pair" else helpers
    dials: dict[str, tuple[Role, ...]] = {
        "client": ("server", "helper") if topology == "helper" else ("server", *helpers),
        "server": helpers,
        "helper": ("server", *helpers),
    }
    return dials.get(role, ())


def guess_role(settings: Settings) -> Role:
    """The role whose key lies in the folder of certificates. Errors: ConfigError if that is not exactly one."""
    folder = settings.certificates.folder
    roles: list[Any] = [role for role in ROLES if (folder / f"{role}.key").is_file()]
    if len(roles) != 1:
        keys = f"holds the keys of {', '.join(roles)}" if roles else "holds no party's key"
        raise ConfigError([f"{folder} {keys}, so it does not say which party this is"])
    return roles[0]


def examine(path: Path | None, role: Role | None = None, /, **flags: Any) -> Iterator[Check]:
    """All checks of one party, as they are made. `flags`: settings by their keys, which override a configuration's."""
    try:
        settings = load_settings(path, **flags)
    except ConfigError as error:
        fix = "correct it; `blindformer doctor --print-config` shows every key"
        yield from (Check("config", "bad", problem, fix) for problem in error.problems)
        return
    try:
        role = role or guess_role(settings)
    except ConfigError as error:
        yield Check("party", "bad", str(error), f"name it with --party: {', '.join(ROLES)}")
        return
    protocol = settings.session.protocol
    spec = find_served(protocol)
    helpers: Any = spec.helpers
    known = ("server", "client", *((*helpers, "helper") if helpers else ()))
    if role not in known:
        fix = f"name one with --party: {', '.join(known)}"
        yield Check("party", "bad", f"protocol {protocol} has no {role}", fix)
        return
    where = shown(settings.file) if settings.file else "no file: options and defaults"
    yield Check("config", "good", f"{role} of {where}", figures={"shared": settings.shared_hash()})
    own: ProtocolChecks = resolve(spec.checks)
    yield from _certificates(settings, role)
    yield from _machine(settings, role)
    programs, check = own.programs(settings, role)
    yield check
    if programs:
        yield from own.files(settings, role, programs)
    if role != "client":
        yield from _listening(settings, role)
    for peer in peers(role, helpers, settings.session.topology):
        yield from own.reach(settings, role, peer, programs)


# Certificates.


def _certificates(settings: Settings, role: Role) -> Iterator[Check]:
    folder = settings.certificates.folder
    try:
        # Listening and dialling hold a certificate to the same things: files, role, dates, CA, key and its mode.
        (client_context if role == "client" else server_context)(folder, role)
        own = next(row for row in describe(folder) if row.file.name == f"{role}.pem")
    except CertificateError as error:
        yield failed("certificate", error)
        return
    if own.revoked:
        yield Check("certificate", "bad", f"{shown(own.file)} was revoked, so others refuse it", NEW_CERTIFICATE)
        return
    what = f"{shown(own.file)}: of {role}, from the CA beside it; its key is this party's alone"
    yield Check("certificate", "good", what)
    yield _expiry(own.file, folder / "ca.pem")
    if role != "client":
        yield _hosts(settings.address(role), own.hosts, role)
    others = [f"{name}.key" for name in ROLES if name != role and (folder / f"{name}.key").exists()]
    if others:
        fix = "where others have machines of their own, keep this party's key only"
        yield Check("keys", "warning", f"{', '.join(others)} in {shown(folder)} too", fix)
    if (folder / CA_KEY).exists() and not _on_one_machine(settings, role):
        what = f"{CA_KEY} in {shown(folder)}: who reads it can pass for any party, both servers and the dealer at once"
        yield Check("CA's key", "warning", what, "move it to a machine that runs no party, and keep it offline")


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
        return Check("dates", "warning", what, "renew them before that: `blindformer certs renew`", figures)
    return Check("dates", "good", what, figures=figures)


def _hosts(address: Address, hosts: tuple[str, ...], role: Role) -> Check:
    """The certificate names the host of `address`, which others dial."""
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
    what, fix = slow() or (level(), "")
    yield Check("kernels", "warning" if fix else "good", what, fix, {"level": level()})
    name = getattr(settings, role).device
    try:
        device = find_device(name)
        free = "" if device == CPU else f", {room(device) / GB:.3g} GB free"
        yield Check("device", "good", f"{name}{free}", figures={"device": name})
    except DeviceError as error:
        yield failed("device", error)
    count = cores()
    if role == "client":
        yield Check("cores", "good", str(count), figures={"cores": count})
        return
    service = getattr(settings, role)
    what = f"{count}, for {service.workers or count} queries at once"
    yield Check("cores", "good", what, figures={"cores": count})
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * service.sessions + service.queue + SOCKETS_SPARE
    if files != resource.RLIM_INFINITY and files < needed:
        what = f"{files}, where {service.sessions} sessions may need {needed}"
        yield Check("open files", "warning", what, f"raise the limit (ulimit -n {needed}, or LimitNOFILE={needed})")


def _listening(settings: Settings, role: Role) -> Iterator[Check]:
    listen, address = getattr(settings, role).listen, settings.address(role)
    what = f"{listen}, dialled at {address}"
    if is_loopback(listen.host) and not is_loopback(address.host):
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
    if metrics is not None and not is_loopback(metrics.host):
        fix = "listen on 127.0.0.1, or let a firewall say who may"
        yield Check("metrics", "warning", f"{metrics}: anybody who reaches it reads them", fix)


def _on_one_machine(settings: Settings, role: Role) -> bool:
    """All addresses that the parties are dialled at, and that this one listens at, are of this machine."""
    hosts = [settings.address(name).host for name in ROLES if name != "client"]
    if role != "client":
        hosts.append(getattr(settings, role).listen.host)
    return all(map(is_loopback, hosts))
