"""How the three parties of a session connect: who dials whom, and what they compare before any share is sent.

    client -> server   hello, with the session's id, which the client draws
    client -> dealer   hello, with the same id; leaves its seed there and hangs up
    server -> dealer   hello, with the same id: the dealer gives each seed to one server's connection

With a helper, the client dials server and helper, and the helper acts as the client above, with the same id.

The hash of the program stands for the model's shape, the plan and the scales: a party with another one is refused here.
The dealer runs the program that the other two name, so it answers any program's hello, and compares the two names.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from ...models.program.program import Program
from ...models.program.two_server import for_audits, for_two_servers, is_for_two_servers
from ...protocols.errors import PeerProtocolError
from ...versions import spoken_version
from ..config import SessionSection
from ..transport.handshake import Address, Hello, greet, introduce
from ..transport.stream import StreamChannel
from .messages import SAME_VERSION, receive_expected


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
        if receive_expected(channel, ("seeded",))["seeded"] is not True:
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
