"""What `blindformer doctor` looks at for sessions with a dealer: room for correlations and weights, and the peers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ...models.program.pricing import price
from ...models.program.program import Program
from ...protocols.errors import PeerError, PeerTimeout
from ..certificates.authority import CertificateError
from ..certificates.contexts import client_context
from ..config import Role, Settings
from ..session.spool import Spool, SpoolError
from ..session.spool.spool import LEDGER
from ..transport.handshake import PeerFacts, Probed, my_facts, probe
from ..transport.tls import dial
from .checks import ANSWER_SECONDS, Check, clock_check, failed, programs_check, room, version_check

ROLES: tuple[Role, ...] = ("server", "client", "dealer", "helper")
SPOOL_QUERIES = 10  # room that a spool should have, in queries
PROGRAMS_ASKED = 64


def peers(role: Role, topology: str) -> tuple[Role, ...]:
    """Whom a party dials. The dealer only listens."""
    helped = topology == "helper"
    dials: dict[str, tuple[Role, ...]] = {
        "client": ("server", "helper") if helped else ("server", "dealer"),
        "server": ("dealer",),
        "helper": ("server", "dealer"),
    }
    return dials.get(role, ())


def files(settings: Settings, role: Role, programs: Sequence[Program]) -> Iterator[Check]:
    """What this party keeps beside its part of the model."""
    part, prices = getattr(settings, role), [price(program) for program in programs]
    if part.spool is not None:
        # A preprocessed correlation takes the server the dealer's corrections, the client a key.
        query = max(found.offline_bytes for found in prices) if role == "server" else 4096
        yield room("spool", part.spool, query, f"{role}.spool", SPOOL_QUERIES)
        if (part.spool / LEDGER).is_file():
            yield _ledger(part.spool)
    if role == ("helper" if settings.session.topology == "helper" else "client"):
        yield room("cache", part.cache, max(found.setup_bytes for found in prices), f"{role}.cache")


def _ledger(folder: Path) -> Check:
    try:
        left = Spool(folder, must_exist=True).left()
    except SpoolError as error:
        return failed(
            "ledger", error, "move the folder away, and the peer's, and make new ones: `blindformer precompute`"
        )
    return Check("ledger", "good", f"preprocessed correlations ready: {left}", figures={"left": left})


def reach(settings: Settings, role: Role, peer: Role, programs: Sequence[Program]) -> Iterator[Check]:
    """A peer that this party dials."""
    address = settings.address(peer)
    try:
        context = client_context(settings.certificates.folder, role)
    except CertificateError:
        return  # said already
    mine = my_facts(role, settings.shared_hash(), [program.hash() for program in programs[:PROGRAMS_ASKED]])
    dialled = False
    try:
        with dial(*address, context, peer, timeout=ANSWER_SECONDS, handshake_seconds=ANSWER_SECONDS) as channel:
            dialled = True
            found = probe(channel, mine)
    except PeerError as error:
        fix = error.remedy
        if dialled:
            fix += "; or it serves another protocol: see [session] there"
        elif isinstance(error, PeerTimeout):
            fix += f"; let firewalls pass TCP port {address.port}"
        yield Check(f"{peer}: reached", "bad", error.what, fix)
        return
    yield Check(f"{peer}: reached", "good", f"{address}, a {peer} of this CA, TLS 1.3")
    yield from _agreement(peer, mine, found)
    what = f"{found.rtt_s * 1e3:.1f} ms there and back; measure its bandwidth with iperf3"
    yield Check(f"{peer}: network", "good", what, figures={"rtt_s": found.rtt_s})


def _agreement(peer: Role, mine: PeerFacts, found: Probed) -> Iterator[Check]:
    theirs = found.facts
    yield version_check(peer, theirs.blindformer, mine.blindformer)
    if mine.config and theirs.config:
        same = mine.config == theirs.config
        what = "the same protocol and topology" if same else "another protocol or topology there"
        fix = "" if same else "give all parties the same [session]; flags count too"
        yield Check(f"{peer}: config", "good" if same else "bad", what, fix)
    if mine.programs and peer in ("server", "helper"):
        yield programs_check(peer, len(theirs.programs), len(mine.programs))
    yield clock_check(peer, found.clock_s, found.rtt_s)
