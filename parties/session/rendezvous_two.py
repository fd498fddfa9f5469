"""How the three parties of a session connect: who dials whom, and what they compare before any share is sent.

    client -> server   hello, with the session's id, which the client draws
    client -> dealer   hello, with the same id; leaves its seed there and hangs up
    server -> dealer   hello, with the same id: the dealer gives each seed to one server's connection

With a helper, the client dials server and helper, and the helper acts as the client above, with the same id.

The hash of the program stands for the model's shape, the plan and the scales: a party with another one is refused here.
The dealer runs the program that the other two name, so it answers any program's hello, and compares the two names.
"""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Protocol, TypeVar

from ...models.program.program import Program
from ...models.program.two_server import for_audits, for_two_servers, is_for_two_servers
from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError, PeerError, PeerGone, PeerProtocolError, PeerRefused, PeerTimeout
from ...versions import spoken_version
from ..config import SessionSection
from ..transport.frames import say_why
from ..transport.handshake import Hello, PeerFacts, answer_hello, hello, probe
from ..transport.stream import StreamChannel
from ..transport.tls import dial
from .messages import SAME_VERSION, hear

Address = tuple[str, int]
Refused = Callable[[PeerError], None]
SESSION_BYTES = 16
HELLO_SECONDS = 10.0
LOAD_SECONDS = 30.0
RETRY_SECONDS = 5.0  # while nobody listens yet
DEALER_SECONDS = 8.0  # for a dealer, which loads no model, to answer
KNOCK_SECONDS = 1.75  # for a handshake


def agreed_program(program: Program, session: SessionSection) -> Program:
    """The program that the parties of a session run, of the one that was compiled. Errors: ProgramError."""
    if session.topology == "helper":
        return for_two_servers(program)
    return for_audits(program, session.audits) if session.audits else program


def rate_in_words(audits: float) -> str:
    """A rate of audits, exactly."""
    short = f"{audits:g}"
    return short if float(short) == audits else repr(audits)


class HasProgram(Protocol):
    @property
    def program(self) -> Program: ...


P = TypeVar("P", bound=HasProgram)


def new_session() -> str:
    """A session's id, hex. The client draws it, for one session."""
    return secrets.token_hex(SESSION_BYTES)


def my_hello(program: Program, role: str, session: str = "", protocol: str = "beaver", config: str = "") -> Hello:
    """This party's hello for a program. An empty `session` takes the peer's. `config`: Settings.shared_hash()."""
    return Hello(
        blindformer=spoken_version(),
        role=role,
        topology="helper" if is_for_two_servers(program) else "dealer",
        program=program.hash(),
        ring=program.ring,
        plan=program.plan,
        protocol=protocol,
        session=session,
        config=config,
        audits=rate_in_words(program.audits),
    )


def seed_dealer(
    context: ssl.SSLContext, dealer: Address, mine: Hello, timeout: float, seed: bytes, wait: float | None = None
) -> None:
    """Leave a party's seed with the dealer; all but the leader do. `wait`: as `introduce`. Errors: `PeerError`."""
    channel, _ = introduce(dealer, context, "dealer", mine, timeout, wait)
    try:
        channel.send_message({"seed": seed.hex()})
        if hear(channel, ("seeded",))["seeded"] is not True:
            raise PeerProtocolError("dealer", "did not say that it has this side's seed", SAME_VERSION)
    finally:
        channel.close()


def meet_client(
    channel: StreamChannel,
    served: Mapping[str, P],
    timeout: float,
    *,
    role: str = "server",
    config: str = "",
    first: dict[str, Any] | None = None,
) -> tuple[P, Hello]:
    """On a channel whose peer asks for a program: this side's part of the program, and the peer's hello.

    `served`: by program hash (at the server: `serve_parts`). `role`: this side's. `first`: the peer's first message, if
    it has been received already. Errors: `PeerError`; the peer gets the reason.
    """

    def choose(theirs: Hello) -> Hello:
        # An unknown program is answered with a known one: both sides then see that they differ.
        part = served.get(theirs.program) or next(iter(served.values()))
        return my_hello(part.program, role, theirs.session, config=config)

    theirs = greet(channel, choose, timeout, first)
    return served[theirs.program], theirs


def meet_as_dealer(
    channel: StreamChannel,
    timeout: float,
    *,
    protocol: str = "beaver",
    topology: str = "",
    config: str = "",
    first: dict[str, Any] | None = None,
    like: Hello | None = None,
) -> Hello:
    """At the dealer, on a channel that a peer opened: the peer's hello. `like`: the hello of the session's first party,
    which all others must match. `topology`: if the settings name one. The dealer needs no CrypTen, whose version
    parties name, too. Errors: as `meet_client`."""

    def choose(theirs: Hello) -> Hello:
        same = theirs.blindformer.partition("+")[0] == spoken_version()
        version = theirs.blindformer if same else spoken_version()
        mine = {"blindformer": version, "role": "dealer", "protocol": protocol, "topology": topology, "config": config}
        return (like or theirs).model_copy(update=mine)

    return greet(channel, choose, timeout, first)


def abort(channels: Collection[Channel], error: BlindformerError) -> None:
    """Tell the peers of a session why it ends, and hang up. Takes at most a second for each."""
    for channel in channels:
        channel.timeout = min(channel.timeout, 1.0)
        # A peer that is gone cannot hear it; a peer that refused this side knows.
        if not isinstance(error, PeerGone | PeerRefused) or channel.peer != error.party:
            say_why(channel, error)
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
        say_why(channel, error)
        raise error
    channel.timeout = timeout
    return theirs
