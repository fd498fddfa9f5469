"""The hello both sides exchange before any share is sent: same version, program, ring, plan and protocol, or none."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ..protocols.channel import Channel
from ..protocols.errors import PeerDisagrees, PeerProtocolError, PeerRefused
from .frames import printable, say_why

HELLO_LIMIT = 4096

Word = Annotated[str, StringConstraints(max_length=64, pattern=r"^[A-Za-z0-9._+-]*$")]
Hex = Annotated[str, StringConstraints(max_length=128, pattern=r"^[0-9a-f]*$")]

# What both sides must have in common, and what to do when they have not.
_REMEDIES = {
    "blindformer": "install the same version on both sides",
    "program": "compile once and give both sides artifacts of that one compilation",
    "ring": "compile both sides' program for the same ring",
    "plan": "use the same plan on both sides",
    "protocol": "name the same protocol on both sides",
    "session": "start both sides for the same session",
}


class Hello(BaseModel):
    """Who a party is and what it is about to run. Hashes are hex; `ring` is in bits."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    blindformer: Word
    role: Word
    program: Hex
    ring: int = Field(default=64, ge=1, le=1024)
    plan: Hex
    protocol: Word
    session: Hex = ""
    """Empty: not chosen by this side, which then takes the peer's."""


def hello(channel: Channel, mine: Hello, expect_role: str) -> Hello:
    """Exchange hellos over a new channel and return the peer's.

    Errors: `PeerDisagrees` naming the field, on both sides; `PeerRefused` if the peer's role is not `expect_role`;
    `PeerProtocolError` if what it sent is no hello; those of the channel.
    """
    channel.send_message(mine.model_dump())
    message = channel.recv_message(HELLO_LIMIT)
    try:
        theirs = Hello.model_validate(message)
    except ValidationError as error:
        fields = sorted({printable(str(e["loc"][0]), 30) if e["loc"] else "all of it" for e in error.errors()})
        what = f"sent no valid hello (wrong: {', '.join(fields[:8])})"
        failure = PeerProtocolError(channel.peer, what, _REMEDIES["blindformer"])
        say_why(channel, failure)
        raise failure from None
    _compare(channel.peer, mine, theirs)
    if theirs.role != expect_role:
        what = f"says it is a {theirs.role} where a {expect_role} was expected"
        refusal = PeerRefused(channel.peer, what, "check the address and port, and the role it was started with")
        say_why(channel, refusal)
        raise refusal
    return theirs


def _compare(peer: str, mine: Hello, theirs: Hello) -> None:
    """Both sides run this on the same two hellos, so both raise and nobody need tell the other."""
    for field, remedy in _REMEDIES.items():
        here, there = getattr(mine, field), getattr(theirs, field)
        if here == there or (field == "session" and "" in (here, there)):
            continue
        raise PeerDisagrees(peer, f"has {field} {_short(there)}, this side has {_short(here)}", remedy)


def _short(value: str | int) -> str:
    text = str(value) or "none"
    return text if len(text) <= 16 else text[:12] + "..."
