"""The hello both sides exchange before any share is sent: same version, program, ring, plan and protocol, or none.

The side that dialled speaks first. The other one may serve several programs: it answers when it knows which is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...protocols.channel import Channel
from ...protocols.errors import PeerDisagrees, PeerProtocolError, PeerRefused
from .frames import printable, say_why

HELLO_LIMIT = 4096

Word = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._+-]*$")]
Hex = Annotated[str, StringConstraints(max_length=128, pattern=r"^[0-9a-f]*$")]

# What both sides must have in common, and what to do when they have not. Who has another topology has another program,
# too, which another compilation would not mend.
_REMEDIES = {
    "topology": "say --topology {there} and --{there} HOST:PORT on this side ([session] in a file), "
    "or --topology {here} on the other",
    "blindformer": "install the same version on both sides",
    "program": "compile once and give both sides artifacts of that one compilation",
    "ring": "compile both sides' program for the same ring",
    "plan": "use the same plan on both sides",
    "protocol": "name the same protocol on both sides",
    "session": "start both sides for the same session",
    "config": "give all parties the same protocol, topology and [crypten.parties], flags included; the rest may differ",
}
_MAY_BE_EMPTY = ("topology", "session", "config")  # then it is not compared


class Hello(BaseModel):
    """Who a party is and what it is about to run. Hashes are hex; `ring` is in bits."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    blindformer: Word
    role: Word
    topology: Word = ""
    """Empty where there is one only, or where any will do: at a dealer."""
    program: Hex
    ring: int = Field(default=64, ge=1, le=1024)
    plan: Hex
    protocol: Word
    session: Hex = ""
    """Empty: not chosen by this side, which then takes the peer's."""
    config: Hex = ""
    """Of the configuration that all parties share; empty where there is none."""


class MovedTo(Exception):
    """The peer is the address of several like it: `address` ("host:port") is the one for this session."""

    def __init__(self, address: str) -> None:
        self.address = address
        super().__init__(address)


def hello(channel: Channel, mine: Hello, expect_role: str) -> Hello:
    """Say hello first over a new channel, and return the peer's.

    Errors: `MovedTo`; `PeerDisagrees` naming the field, on both sides; `PeerRefused` if the peer's role is not
    `expect_role`; `PeerProtocolError` if what it sent is no hello; those of the channel.
    """
    channel.send_message(mine.model_dump())
    reply = channel.recv_message(HELLO_LIMIT)
    if isinstance(address := reply.get("moved"), str):
        raise MovedTo(address)
    theirs = _receive(channel, reply)
    _compare(channel.peer, mine, theirs)
    _check_role(channel, theirs, (expect_role,))
    return theirs


def answer_hello(
    channel: Channel,
    choose: Callable[[Hello], Hello],
    expect_roles: Collection[str],
    first: dict[str, Any] | None = None,
) -> Hello:
    """Hear the peer's hello, answer with what `choose` makes of it, and return the peer's.

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
        say_why(channel, failure)
        raise failure from None


def _check_role(channel: Channel, theirs: Hello, expected: Collection[str]) -> None:
    if theirs.role not in expected:
        what = f"says it is a {theirs.role} where a {' or '.join(sorted(expected))} was expected"
        refusal = PeerRefused(channel.peer, what, "check the address and port, and the role it was started with")
        say_why(channel, refusal)
        raise refusal


def _compare(peer: str, mine: Hello, theirs: Hello) -> None:
    """Both sides run this on the same two hellos, so both raise and nobody need tell the other."""
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
