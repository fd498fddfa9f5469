"""Admission for asyncio: connections that ask for one encrypted query, and those queries (service/admission.py)."""

from __future__ import annotations

import asyncio

from ..admission import Admission, Busy, News, Queued
from ..limits import ServiceLimits
from .refusals import Refusal, busy


class Places:
    """`limits.sessions`: connections with a request at a time. `connection`: its number."""

    def __init__(self, limits: ServiceLimits) -> None:
        self._admission = Admission(limits, places="connections")
        self._turns: dict[int, asyncio.Future[None]] = {}  # of queries that wait

    @property
    def gauges(self) -> dict[str, int]:
        return {"running": self._admission.running, "queued": self._admission.queued}

    def open(self, connection: int, owner: str) -> Refusal | None:
        """A place for a request; or why there is none."""
        verdict = self._admission.open(connection, owner)
        return busy(verdict.why, verdict.seconds) if isinstance(verdict, Busy) else None

    def leave(self, connection: int) -> None:
        """It is gone, and its query with it, if that waits."""
        if turn := self._turns.pop(connection, None):
            turn.cancel()
        self._spread(self._admission.leave(connection))

    def check(self, connection: int) -> None:
        """Errors: Refusal (503) if a query would find no place; (400) if the connection has left."""
        try:
            verdict = self._admission.check(connection)
        except ValueError:
            raise Refusal(400, "the connection has ended; ask again") from None
        if verdict is not None:
            raise busy(verdict.why, verdict.seconds)

    async def turn(self, connection: int) -> None:
        """Return when the query may compute. Errors: as `check`; CancelledError when the connection leaves."""
        self.check(connection)
        verdict = self._admission.want(connection)
        if isinstance(verdict, Queued):
            self._turns[connection] = asyncio.get_running_loop().create_future()
            await self._turns[connection]

    def release(self, connection: int) -> None:
        """The query is over. One whose connection has left holds nothing."""
        if self._admission.is_running(connection):
            self._spread(self._admission.release(connection))

    def _spread(self, news: News) -> None:
        for connection, verdict in news:
            if not isinstance(verdict, Queued):
                self._turns.pop(connection).set_result(None)
