"""The JSON messages that the parties of a session send between tensor frames, and how they are read; and whether a
query may compute now: a session asks for a slot, a server that computes for many clients hands slots out.

Every message is validated before its content is used: no party trusts another.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError, PeerError, PeerProtocolError
from ...protocols.seeds import SEED_HEX
from ..transport.frames import printable
from .preprocessing_store import Missing, Number, Ref

SAME_VERSION = "use the same version at every party"

M = TypeVar("M", bound="Message")
Waiting = Callable[[dict[str, Any]], None]  # gets the messages of a peer that lets this side wait


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Seed(Message):
    """A party's seed."""

    seed: Annotated[str, StringConstraints(pattern=SEED_HEX, strict=True)]


class PartRun(Message):
    """What a query runs of a program that has several parts. A run reads the first `rows` rows that earlier queries
    kept, and drops the later ones. `runs`: correlations of so many runs, each on the rows of those before it, are made
    at once. A message calls it `turn`."""

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
    """The query for which a data owner outside the computation sends shares, its part of the program, and the rows of
    the result that the owner is to learn."""

    query: Number
    part: Annotated[str, StringConstraints(max_length=64, strict=True)] = ""
    revealed: Pair | None = None

    def message(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)


class Ask(Runs):
    """The client asks for a query, on correlations of the store or on live ones (None).

    `more`: another query follows, on the correlations `then`.
    """

    query: Number
    store: Ref | None = None
    more: Annotated[bool, Field(strict=True)] = False
    then: Ref | None = None


class Announce(Message):
    """The client will ask for query `announce`, which runs `turn`: its correlations may be made now."""

    announce: Number
    turn: PartRun = PartRun()


class Handed(Runs):
    """A query of a data owner outside the computation, as the owner sends it to the helper; fields as of `Ask`."""

    more: Annotated[bool, Field(strict=True)] = False


class Precompute(Message):
    """The client asks for preprocessed correlations of `precompute` queries."""

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
    """The number of a query. Numbers count up: one below `least` was used already. Errors: `PeerProtocolError`."""
    number = message.get(name)
    if not isinstance(number, int) or not least <= number <= (2**53 if most is None else most):
        raise PeerProtocolError(
            channel.peer, f"asked for a {name} out of order", f"start a new session; a {name}'s number is used once"
        )
    return number


def read_missing(channel: Channel, ref: Ref, reply: Mapping[str, Any]) -> Missing:
    """Why the server lacks what this side proposed. Errors: `PeerProtocolError`."""
    following = reply.get("next")
    if following is not None and not (isinstance(following, int) and ref.number < following < 2**53):
        raise out_of_place(channel)
    return Missing(reply.get("known") is True, following)


def out_of_place(channel: Channel) -> PeerProtocolError:
    return PeerProtocolError(channel.peer, "sent a message that has no place here", SAME_VERSION)


def amount(message: Mapping[str, Any], name: str) -> float:
    """A number that a peer reports, only for display; 0 if it reports none."""
    value = message.get(name, 0.0)
    return float(value) if isinstance(value, int | float) and abs(value) < 1e15 else 0.0


@contextmanager
def refusing(channel: Channel) -> Iterator[None]:
    """A query may be refused in this block: the peer gets the reason, and the session goes on."""
    try:
        yield
    except SlotsBusy as busy:
        channel.send_message({"busy": busy.retry_after, "party": busy.party, "why": busy.why})
    except LimitReached as limit:
        channel.send_message({"limit": limit.each, "period": limit.period, "seconds": limit.retry_after})


def receive_expected(channel: Channel, expected: tuple[str, ...], waiting: Waiting | None = None) -> dict[str, Any]:
    """The next message that has one of the names `expected`, after any heartbeats, which `waiting` gets.

    Errors: `SlotsBusy` if the peer, or a party that the peer asked, has no free slot; `LimitReached` if this side has
    used up its limit; `PeerProtocolError` for any other message.
    """
    while True:
        message = channel.recv_message()
        if "waiting" in message or "queued" in message:
            if waiting:
                waiting(message)
            continue
        if "limit" in message:
            each, period, seconds = (amount(message, name) for name in ("limit", "period", "seconds"))
            raise LimitReached(channel.peer, int(each), period, seconds)
        if "busy" in message:
            party = printable(message.get("party"), 32) or channel.peer
            why = printable(message.get("why")) or "it does not say why"
            raise SlotsBusy(party, amount(message, "busy"), why)
        if not any(name in message for name in expected):
            raise out_of_place(channel)
        return message


def receive_for_query(channel: Channel, name: str, number: int, waiting: Waiting | None = None) -> dict[str, Any]:
    """The next message, called `name` and about query `number`. Errors: as `receive_expected`."""
    message = receive_expected(channel, (name,), waiting)
    if message[name] != number:
        raise PeerProtocolError(channel.peer, "answered another query", "run the query in a new session")
    return message


def goodbye(channel: Channel) -> None:
    """Tell the peer that no more requests come; it may be gone already."""
    with suppress(PeerError):
        channel.send_message({"bye": True})


def requests(channel: Channel, idle: float | None) -> Iterator[dict[str, Any]]:
    """The peer's requests, until its goodbye. `idle`: seconds that the peer may be silent before each (None: the
    channel's timeout). Errors: `PeerError`."""
    while True:
        with patient(channel, idle):
            message = channel.recv_message()
        if message.get("bye"):
            return
        yield message


@contextmanager
def patient(channel: Channel, idle: float | None) -> Iterator[None]:
    """Allow `idle` seconds of silence, instead of the channel's timeout, before a message that the peer need not send
    yet."""
    timeout = channel.timeout
    channel.timeout = timeout if idle is None else idle
    try:
        yield
    finally:
        channel.timeout = timeout


MOST_SECONDS = 1e9  # to wait, whatever a peer says


class SlotsBusy(BlindformerError):
    """A party has no free slot at the moment. The session goes on: ask again in `retry_after` seconds."""

    def __init__(self, party: str, retry_after: float, why: str = "all its places are taken") -> None:
        self.party, self.retry_after, self.why = party, retry_after, why
        super().__init__(f"{party}: is busy ({why}); ask again in {retry_after:g} seconds")


class LimitReached(BlindformerError):
    """One certificate has used up its limit of `each` texts in `period` seconds; ask again in `retry_after` seconds."""

    def __init__(self, party: str, each: int, period: float, retry_after: float) -> None:
        retry_after = min(max(retry_after, 0.0), MOST_SECONDS)
        self.party, self.each, self.period, self.retry_after = party, each, period, retry_after
        when = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=retry_after)
        super().__init__(
            f"{party}: has answered the {each} texts that one certificate may ask in {span(period)}; "
            f"ask again in {span(retry_after)}, at {when:%Y-%m-%d %H:%M:%S} UTC"
        )


def span(seconds: float) -> str:
    """A duration in its largest whole unit: 2.5 hours."""
    units = (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1))
    unit, size = next((one for one in units if seconds >= one[1]), units[-1])
    number = f"{seconds / size:.3g}"
    return f"{number} {unit}{'' if number == '1' else 's'}"


class ComputeSlots(Protocol):
    """Hands out slots for queries to compute in."""

    def slot(self, number: int, waiting: Callable[[int], None]) -> AbstractContextManager[None]:
        """A slot for query `number`, held while the context lasts: correlations and online phase.

        While the query waits, the implementation calls `waiting(k)`, k being its place in the queue, at least three
        times within the session's timeout: the client's heartbeat. `waiting` raises `PeerError` when the client has
        gone; then the query's place in the queue is freed.

        Errors: `SlotsBusy`.
        """
        ...


class Unlimited:
    """A free slot for every query."""

    def slot(self, number: int, waiting: Callable[[int], None]) -> AbstractContextManager[None]:
        return nullcontext()
