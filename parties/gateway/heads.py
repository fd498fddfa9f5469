"""Connections that have not sent the whole head of a request: so many, for so long. What follows is bounded elsewhere
(bodies.py, turns.py), and is read of who has the key alone."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # for the first head; between a reply and the next one uvicorn counts (timeout_keep_alive)
HEADS = 128


class PendingHeads:
    """Those that wait for a head. Where there are too many, the oldest leaves, of the host that has most: an honest
    caller's head comes at once."""

    def __init__(self, most: int = HEADS, seconds: float = HEAD_SECONDS) -> None:
        self.most, self.seconds = most, seconds
        self._waiting: dict[HeadProtocol, asyncio.TimerHandle] = {}

    def begin(self, connection: HeadProtocol) -> None:
        self.end(connection)
        if len(self._waiting) >= self.most:
            held = Counter(other.host for other in self._waiting)
            self._drop(min(self._waiting, key=lambda other: -held[other.host]))  # of these the oldest
        loop = asyncio.get_running_loop()
        self._waiting[connection] = loop.call_later(self.seconds, self._drop, connection)

    def end(self, connection: HeadProtocol) -> None:
        timer = self._waiting.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _drop(self, connection: HeadProtocol) -> None:
        self.end(connection)
        connection.transport.close()


class HeadProtocol(H11Protocol):
    """uvicorn's, which would wait for a head for ever. `Config(http=partial(HeadProtocol, heads=PendingHeads()))`."""

    def __init__(self, *args: Any, heads: PendingHeads, **options: Any) -> None:
        super().__init__(*args, **options)
        self._heads = heads

    @property
    def host(self) -> str:
        return self.client[0] if self.client else ""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heads.begin(self)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._heads.end(self)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self._heads.begin(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._heads.end(self)
        super().connection_lost(exc)
