"""What the parties of a session say to each other between the frames, and how it is read: nothing is taken on trust."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from ...protocols.channel import Channel
from ...protocols.errors import PeerProtocolError
from ...protocols.seeds import SEED_HEX
from ..transport.frames import printable
from .compute_slots import LimitReached, SlotsBusy
from .spool.spool import Number, Ref

SAME_VERSION = "use the same version at every party"

M = TypeVar("M", bound="Message")
Waiting = Callable[[dict[str, Any]], None]  # told of what a peer says while it lets this side wait


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Seed(Message):
    """A party's seed."""

    seed: Annotated[str, StringConstraints(pattern=SEED_HEX, strict=True)]


class PartRun(Message):
    """What a query runs: a part of a program that has several. It reads the first `rows` of what earlier queries kept;
    the others are forgotten. `runs`: of so many, each on the rows of those before, correlations are made at once."""

    part: Annotated[str, StringConstraints(max_length=64, strict=True)] = ""
    rows: Number = 0
    runs: Annotated[int, Field(ge=1, le=8, strict=True)] = 1

    def message(self) -> dict[str, Any]:
        return {} if self == PartRun() else {"turn": self.model_dump()}


Pair = Annotated[tuple[Number, Number], BeforeValidator(lambda pair: tuple(pair) if isinstance(pair, list) else pair)]


class Runs(Message):
    """What a query runs (`turn`), and what the query after it will. Only rows `revealed` of its results [1, rows, ...]
    (the first, and the one after the last) leave the server (None: all). A message leaves out what is as usual."""

    turn: PartRun = PartRun()
    following: PartRun = PartRun()
    revealed: Pair | None = None

    def message(self) -> dict[str, Any]:
        return self.model_dump(exclude={name for name, usual in ONE_RUN if getattr(self, name) == usual})


ONE_RUN = Runs()


class Shares(Message):
    """What a data owner who takes no part sends shares for, and counts before: its query, of which part, and the rows
    of the result that it is to learn."""

    query: Number
    part: Annotated[str, StringConstraints(max_length=64, strict=True)] = ""
    revealed: Pair | None = None

    def message(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True) | {"query": self.query}


class Ask(Runs):
    """The client asks for a query, on correlations of the spool or live ones (None).

    `more`: another query follows; `then`: on which correlations.
    """

    query: Number
    spool: Ref | None = None
    more: Annotated[bool, Field(strict=True)] = False
    then: Ref | None = None


class Announce(Message):
    """The client is going to ask for query `announce`, which runs `turn`: its correlations may be made now."""

    announce: Number
    turn: PartRun = PartRun()


class Handed(Runs):
    """A query of a data owner who takes no part, as it tells the helper: all as of `Ask`."""

    more: Annotated[bool, Field(strict=True)] = False


class Precompute(Message):
    """The client asks for correlations of `precompute` queries ahead."""

    precompute: Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


def read(channel: Channel, kind: type[M], message: Mapping[str, Any]) -> M:
    """A message of this kind. Errors: `PeerProtocolError`."""
    try:
        return kind.model_validate(message)
    except ValidationError:
        raise out_of_place(channel) from None


def read_seed(channel: Channel) -> bytes:
    """The seed that the peer sends now. Errors: `PeerError`."""
    return bytes.fromhex(read(channel, Seed, channel.recv_message()).seed)


def read_number(channel: Channel, message: Mapping[str, Any], name: str, least: int, most: int | None = None) -> int:
    """The number of a query, which counts up: one that is too small was used. Errors: `PeerProtocolError`."""
    number = message.get(name)
    if not isinstance(number, int) or not least <= number <= (2**53 if most is None else most):
        raise PeerProtocolError(
            channel.peer, f"asked for a {name} out of order", f"start a new session; a {name}'s number is used once"
        )
    return number


def out_of_place(channel: Channel) -> PeerProtocolError:
    return PeerProtocolError(channel.peer, "sent a message that has no place here", SAME_VERSION)


def other_query(channel: Channel) -> PeerProtocolError:
    return PeerProtocolError(channel.peer, "answered another query", "run the query in a new session")


def amount(message: Mapping[str, Any], name: str) -> float:
    """A number that a peer reports, for display alone; 0 if it reports none."""
    value = message.get(name, 0.0)
    return float(value) if isinstance(value, int | float) and abs(value) < 1e15 else 0.0


@contextmanager
def refusing(channel: Channel) -> Iterator[None]:
    """Where a query may be turned away: then the peer is told, and the session goes on."""
    try:
        yield
    except SlotsBusy as busy:
        channel.send_message({"busy": busy.retry_after, "party": busy.party, "why": busy.why})
    except LimitReached as limit:
        channel.send_message({"limit": limit.each, "period": limit.period, "seconds": limit.retry_after})


def read_busy(channel: Channel, message: Mapping[str, Any]) -> SlotsBusy:
    """What the peer says of itself, or of a party that it asked in turn."""
    party = printable(message.get("party"), 32) or channel.peer
    return SlotsBusy(party, amount(message, "busy"), printable(message.get("why")) or "it does not say why")


def read_limit(channel: Channel, message: Mapping[str, Any]) -> LimitReached:
    each, period, seconds = (amount(message, name) for name in ("limit", "period", "seconds"))
    return LimitReached(channel.peer, int(each), period, seconds)


def hear(channel: Channel, expected: tuple[str, ...], waiting: Waiting | None = None) -> dict[str, Any]:
    """The next message that has one of the names `expected`, after any signs of life.

    `waiting` is told of these. Errors: `SlotsBusy` if the peer, or a party that it asked, has no room, `LimitReached`
    if this side has asked all that it may, `PeerProtocolError` for anything else.
    """
    while True:
        message = channel.recv_message()
        if "waiting" in message or "queued" in message:
            if waiting:
                waiting(message)
            continue
        if "limit" in message:
            raise read_limit(channel, message)
        if "busy" in message:
            raise read_busy(channel, message)
        if not any(name in message for name in expected):
            raise out_of_place(channel)
        return message


def hear_of(channel: Channel, name: str, number: int, waiting: Waiting | None = None) -> dict[str, Any]:
    """The next message, called `name` and about query `number`. Errors: as `hear`."""
    message = hear(channel, (name,), waiting)
    if message[name] != number:
        raise other_query(channel)
    return message


def requests(channel: Channel, idle: float | None) -> Iterator[dict[str, Any]]:
    """What the peer asks for, one message after the other, until it says goodbye. `idle`: seconds it may be silent
    before each (None: the channel's timeout). Errors: `PeerError`."""
    while True:
        with patient(channel, idle):
            message = channel.recv_message()
        if message.get("bye"):
            return
        yield message


@contextmanager
def patient(channel: Channel, idle: float | None) -> Iterator[None]:
    """Allow another silence (seconds) than the channel's timeout while waiting for something nobody owes us yet."""
    timeout = channel.timeout
    channel.timeout = timeout if idle is None else idle
    try:
        yield
    finally:
        channel.timeout = timeout
