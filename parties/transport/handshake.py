"""Two parties meet: one dials the other, and their first messages are the hello of a session, or a probe.

Both sides say hello before any share is sent: they have the same version, program, ring, plan and protocol, or no
session. The side that dialled speaks first. The other side may serve several programs: it answers when it knows which
is meant.

A probe takes the place of a session: is this the party, and how far away is it?

    asks     {"probe": {version, role, hash of the shared settings, hashes of its programs}}
    answers  the same about itself, which of these programs it has, and what its clock says
    asks     {"echo": n}  -> {"echo": n}, some times         round-trip time
             {"bye": true}

A probe starts after TLS, so only a party with a good certificate can ask. The answering side spends a bounded number
of messages and seconds on it, and reveals nothing that a hello would not reveal as well.
"""

from __future__ import annotations

import secrets
import ssl
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...protocols.channel import Channel
from ...protocols.errors import (
    BlindformerError,
    PeerDisagrees,
    PeerError,
    PeerGone,
    PeerProtocolError,
    PeerRefused,
    PeerTimeout,
)
from ...versions import spoken_version
from .frames import printable, send_error
from .stream import StreamChannel
from .tls import dial

HELLO_LIMIT = 4096
Address = tuple[str, int]
Refused = Callable[[PeerError], None]
SESSION_BYTES = 16
HELLO_SECONDS = 10.0
LOAD_SECONDS = 30.0
RETRY_SECONDS = 5.0  # while nobody listens yet
DEALER_SECONDS = 8.0  # for a dealer, which loads no model, to answer
KNOCK_SECONDS = 1.75  # for a handshake

Word = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._+-]*$")]
Hex = Annotated[str, StringConstraints(max_length=128, pattern=r"^[0-9a-f]*$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
SessionId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]

# The fields that both sides must have in common, and the remedies. Protocol and topology come before program: a party
# with others has another program, too, which another compilation would not mend.
_REMEDIES = {
    "protocol": "name the same protocol on both sides",
    "topology": 'write topology = "{there}" in [session] of this side, or "{here}" on the other',
    "audits": "write audits = {there} in [session] of this side, or {here} on the other",
    "blindformer": "install the same version on both sides",
    "program": "compile once and give both sides artifacts of that one compilation",
    "ring": "compile both sides' program for the same ring",
    "plan": "use the same plan on both sides",
    "session": "start both sides for the same session",
    "config": "give all parties the same protocol, topology and [crypten.parties], flags included",
}
_MAY_BE_EMPTY = ("topology", "audits", "session", "config")  # then it is not compared


class Hello(BaseModel):
    """A party's role and the program that it is about to run. Hashes are hex; `ring` is in bits."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    blindformer: Word
    role: Word
    topology: Word = ""
    """Empty at a dealer that serves any topology."""
    program: Hash
    ring: int = Field(default=64, ge=1, le=1024)
    plan: Hash | Literal[""]
    protocol: Word
    session: SessionId | Literal[""] = ""
    """Empty: this side takes the peer's."""
    config: Hex = ""
    """The hash of the configuration that all parties share; empty if there is none."""
    audits: Word = ""
    """How much of the program's runs are audits, "0" for none; empty at a dealer."""


def make_hello(role: str, protocol: str, program: str, session: str = "", config: str = "", **more: Any) -> Hello:
    """This party's hello for a program. An empty `session` takes the peer's. `config`: Settings.shared_hash()."""
    common: dict[str, Any] = {"blindformer": spoken_version(), "topology": "dealer", "plan": "", "audits": "0"}
    return Hello(role=role, protocol=protocol, program=program, session=session, config=config, **common | more)


def answer_of(hellos: Mapping[str, Hello], theirs: Hello) -> Hello:
    """What a party with several programs says to a peer's hello. An unknown program is answered with a known one: both
    sides then see that they differ."""
    mine = hellos.get(theirs.program) or next(iter(hellos.values()))
    return mine.model_copy(update={"session": theirs.session})


def hello(channel: Channel, mine: Hello, expect_role: str) -> Hello:
    """Say hello first over a new channel, and return the peer's.

    Errors: `PeerDisagrees` naming the field, on both sides; `PeerRefused` if the peer's role is not
    `expect_role`; `PeerProtocolError` if what it sent is no hello; those of the channel.
    """
    channel.send_message(mine.model_dump())
    theirs = _receive(channel, channel.recv_message(HELLO_LIMIT))
    _compare(channel.peer, mine, theirs)
    _check_role(channel, theirs, (expect_role,))
    return theirs


def answer_hello(
    channel: Channel,
    choose: Callable[[Hello], Hello],
    expect_roles: Collection[str],
    first: dict[str, Any] | None = None,
) -> Hello:
    """Receive the peer's hello, answer with `choose(hello)`, and return the peer's.

    `first`: the peer's first message, if it has been received already. Errors: as `hello`.
    """
    theirs = _receive(channel, first)
    mine = choose(theirs)
    channel.send_message(mine.model_dump())
    _compare(channel.peer, mine, theirs)
    _check_role(channel, theirs, expect_roles)
    return theirs


def _receive(channel: Channel, message: dict[str, Any] | None = None) -> Hello:
    try:
        message = channel.recv_message(HELLO_LIMIT) if message is None else message
        return Hello.model_validate(message)
    except ValidationError as error:
        fields = sorted({printable(str(e["loc"][0]), 30) if e["loc"] else "all of it" for e in error.errors()})
        what = f"sent no valid hello (wrong: {', '.join(fields[:8])})"
        failure = PeerProtocolError(channel.peer, what, _REMEDIES["blindformer"])
        send_error(channel, failure)
        raise failure from None


def _check_role(channel: Channel, theirs: Hello, expected: Collection[str]) -> None:
    if theirs.role not in expected:
        what = f"says it is a {theirs.role} where a {' or '.join(sorted(expected))} was expected"
        refusal = PeerRefused(channel.peer, what, "check the address and port, and the role it was started with")
        send_error(channel, refusal)
        raise refusal


def _compare(peer: str, mine: Hello, theirs: Hello) -> None:
    """Both sides run this on the same two hellos, so both raise, and neither has to tell the other."""
    for field, remedy in _REMEDIES.items():
        here, there = getattr(mine, field), getattr(theirs, field)
        if here == there or (field in _MAY_BE_EMPTY and "" in (here, there)):
            continue
        raise PeerDisagrees(
            peer, f"has {field} {_short(there)}, this side has {_short(here)}", remedy.format(here=here, there=there)
        )


def _short(value: str | int) -> str:
    text = str(value) or "none"
    return text if len(text) < 32 else text[:12] + "..."  # hashes and ids are known by their first digits


ECHOES, MOST_ECHOES = 9, 128  # that a probe asks for, and that one may
PROBE_SECONDS = 60.0
_PROBE_LIMIT = 16384


class PeerFacts(BaseModel):
    """A party's report of itself. `programs`: the asking side names its own; the answering side those it has, too."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    blindformer: Word
    role: Word
    config: Hex = ""
    programs: list[Hex] = []
    time: float = Field(default=0.0, allow_inf_nan=False)
    """Seconds since 1970 at the answering side."""


@dataclass(frozen=True)
class Probed:
    """What a probe found, in seconds. `rtt_s`: round trip; `clock_s`: how far the peer's clock is ahead of ours."""

    facts: PeerFacts
    rtt_s: float
    clock_s: float


def my_facts(role: str, config: str = "", programs: Iterable[str] = ()) -> PeerFacts:
    """This party's facts. `config`: Settings.shared_hash(). `programs`: hashes."""
    return PeerFacts(blindformer=spoken_version(), role=role, config=config, programs=list(programs))


def is_probe(message: dict[str, Any]) -> bool:
    return "probe" in message


def answer_probe(channel: Channel, message: dict[str, Any], mine: PeerFacts) -> None:
    """Answer one probe, whose first message was `message`, until the peer says goodbye. `mine.programs`: all we have.

    The caller closes the channel, and should end the process that runs this after PROBE_SECONDS.

    Errors: `PeerProtocolError` if the peer asks for more than it may; those of the channel.
    """
    theirs = _facts(channel, message)
    known = sorted(set(theirs.programs) & set(mine.programs))
    answer = mine.model_copy(update={"programs": known, "time": time.time()})
    channel.send_message({"probe": answer.model_dump()})
    end = time.monotonic() + PROBE_SECONDS
    for _ in range(MOST_ECHOES):
        request = channel.recv_message(_PROBE_LIMIT)
        if request.get("bye"):
            return
        if list(request) != ["echo"] or type(request["echo"]) is not int or time.monotonic() > end:
            break
        channel.send_message(request)
    raise PeerProtocolError(channel.peer, "asked a probe for more than it may", _REMEDIES["blindformer"])


def probe(channel: Channel, mine: PeerFacts) -> Probed:
    """Ask the party behind a new channel.

    Errors: `PeerProtocolError` if it does not answer probes; those of the channel.
    """
    start = time.time()
    channel.send_message({"probe": mine.model_dump()})
    facts = _facts(channel, channel.recv_message(_PROBE_LIMIT))
    clock = facts.time - (start + time.time()) / 2
    rtt = statistics.median(_echo(channel, number) for number in range(ECHOES))
    channel.send_message({"bye": True})
    return Probed(facts, rtt, clock)


def _echo(channel: Channel, number: int) -> float:
    """Seconds until a message has come back."""
    start = time.perf_counter()
    channel.send_message({"echo": number})
    if channel.recv_message(_PROBE_LIMIT) != {"echo": number}:
        raise PeerProtocolError(channel.peer, "answered a probe with something else", _REMEDIES["blindformer"])
    return time.perf_counter() - start


def _facts(channel: Channel, message: dict[str, Any]) -> PeerFacts:
    try:
        return PeerFacts.model_validate(message.get("probe"))  # at most _PROBE_LIMIT bytes, so the list is short
    except ValidationError:
        raise PeerProtocolError(channel.peer, "does not answer probes", _REMEDIES["blindformer"]) from None


def new_session() -> str:
    """A session's id, hex. The client draws it, for one session."""
    return secrets.token_hex(SESSION_BYTES)


def abort(channels: Collection[Channel], error: BlindformerError) -> None:
    """Tell the peers of a session why it ends, and hang up. Takes at most a second for each."""
    for channel in channels:
        channel.timeout = min(channel.timeout, 1.0)
        # A peer that is gone cannot hear it; a peer that refused this side knows.
        if not isinstance(error, PeerGone | PeerRefused) or channel.peer != error.party:
            send_error(channel, error)
        channel.close()


def meet(address: Address, context: ssl.SSLContext, role: str, mine: Hello, timeout: float) -> StreamChannel:
    """Dial the party `role` and say hello. Errors: `PeerError`."""
    return introduce(address, context, role, mine, timeout)[0]


def knock(address: Address, context: ssl.SSLContext, role: str, mine: PeerFacts) -> None:
    """Whether the party `role` shakes hands; what it answers then is no matter. Errors: `PeerError` if it does not."""
    within = KNOCK_SECONDS
    with dial(*address, context, role, timeout=within, handshake_seconds=within) as channel, suppress(PeerError):
        probe(channel, mine)


def introduce(
    address: Address, context: ssl.SSLContext, role: str, mine: Hello, timeout: float, wait: float | None = None
) -> tuple[StreamChannel, Hello]:
    """Dial the party `role` and say hello: the channel, and the peer's hello. `wait`: seconds to wait for it to listen
    (None: a few).

    Errors: `PeerError`; `PeerTimeout` if no peer listens after `wait`.
    """
    # The peer listens before it has loaded its model, so that the others can start: give it time to answer.
    patience = DEALER_SECONDS if role == "dealer" and wait is None else max(timeout, LOAD_SECONDS, wait or 0.0)
    retry = RETRY_SECONDS if wait is None else wait
    try:
        channel = dial(*address, context, role, timeout=patience, retry_seconds=retry, handshake_seconds=patience)
    except PeerGone as error:
        if wait is None:
            raise
        what = f"{error.what} after {wait:g} seconds of trying"
        raise PeerTimeout(role, what, "start it, wait longer, or check the address") from None
    try:
        theirs = hello(channel, mine, role)
        channel.timeout = timeout
    except PeerError:
        channel.close()
        raise
    return channel, theirs


def greet(
    channel: StreamChannel, choose: Callable[[Hello], Hello], timeout: float, first: dict[str, Any] | None = None
) -> Hello:
    """Answer the hello of the peer that opened `channel`; its role must be that of its certificate.

    Errors: `PeerError`; the peer gets the reason.
    """
    channel.timeout = min(timeout, HELLO_SECONDS)  # a peer with a good certificate must not block the others either
    theirs = answer_hello(channel, choose, (channel.peer,), first)
    if not theirs.session:
        remedy = "the client draws a session's id and the server passes it on: use the same version on both sides"
        error = PeerProtocolError(channel.peer, "named no valid session", remedy)
        send_error(channel, error)
        raise error
    channel.timeout = timeout
    return theirs
