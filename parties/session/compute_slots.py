"""May this query compute now? A session asks for a slot; a server that computes for many clients hands slots out."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ...protocols.errors import BlindformerError

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
