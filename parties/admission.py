"""May this query compute now? A server that computes for many answers here; a session only asks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from ..protocols.errors import BlindformerError


class Busy(BlindformerError):
    """A party has no room at the moment. The session lives on: ask again in `retry_after` seconds."""

    def __init__(self, party: str, retry_after: float, why: str = "all its places are taken") -> None:
        self.party, self.retry_after, self.why = party, retry_after, why
        super().__init__(f"{party}: is busy ({why}); ask again in {retry_after:g} seconds")


class Admission(Protocol):
    """Hands out places to compute in."""

    def slot(self, number: int, waiting: Callable[[int], None]) -> AbstractContextManager[None]:
        """A place for query `number`, held while the context lasts: correlations and online phase.

        While it makes the query wait it calls `waiting(k)`, k being the place in the queue, at least three times
        within the session's timeout: that is what tells the client that this side lives. `waiting` raises `PeerError`
        when the client has gone; then the place in the queue is to be given back.

        Errors: `Busy`.
        """
        ...


class Open:
    """Always go."""

    def slot(self, number: int, waiting: Callable[[int], None]) -> AbstractContextManager[None]:
        return nullcontext()
