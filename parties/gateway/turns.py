"""Requests of one model, in their order: so many run at a time, so many wait, and one that is left ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from ...errors import BlindformerError
from .problems import LIMITED, ApiError

T = TypeVar("T")
FIRST_SECONDS = 1.0  # the guess of how long a request takes, before there was one


class Line:
    """`at_once` requests run, `most` wait. `seconds`: what the last ones took, on average."""

    def __init__(self, at_once: int, most: int) -> None:
        self.at_once, self.most = at_once, most
        self.running = self.waiting = 0
        self.seconds = FIRST_SECONDS
        self._free = asyncio.Semaphore(at_once)

    async def enter(self) -> None:
        """Wait for a place, and take it. Errors: ApiError (429) where too many wait."""
        if self._free.locked() and self.waiting >= self.most:
            wait = self.seconds * (self.waiting + 1) / self.at_once
            what = f"{self.waiting} requests wait for this model; ask again later, or raise [gateway] queue"
            raise ApiError(429, what, kind=LIMITED, code="rate_limit_exceeded", retry_after=wait)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1

    def leave(self, seconds: float) -> None:
        self.running -= 1
        self.seconds += (seconds - self.seconds) / 4
        self._free.release()


class Job(Generic[T]):
    """Work in a thread, which may say pieces of text while it is done. It has its place until the thread is done.

    `stop` asks the work to end: it looks at `stopped`.
    """

    def __init__(self, line: Line, pool: Executor, work: Callable[[Job[T]], T]) -> None:
        """In a running loop, with a place in the line."""
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        self._stop, self._begun, self._started = threading.Event(), asyncio.Event(), time.perf_counter()
        self._line = line
        self._future = self._loop.run_in_executor(pool, work, self)
        self._future.add_done_callback(self._over)

    def on_end(self, tell: Callable[[Job[T]], object]) -> None:
        self._future.add_done_callback(lambda _: tell(self))

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self) -> None:
        self._stop.set()

    def say(self, text: str) -> None:
        """In the thread."""
        with suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._put, text)

    async def begun(self, seconds: float) -> None:
        """Wait until the first piece is there, or all is over, or for `seconds`. Errors: the work's, if it is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._begun.wait()
        if self._future.done():
            self._future.result()

    async def pieces(self, patience: float | None = None) -> AsyncIterator[str]:
        """What it says; "" where it said nothing for `patience` seconds."""
        while True:
            try:
                async with asyncio.timeout(patience):
                    piece = await self._news.get()
            except TimeoutError:
                yield ""
                continue
            if piece is None:
                return
            yield piece

    async def result(self) -> T:
        return await asyncio.shield(self._future)

    def _over(self, future: asyncio.Future[T]) -> None:
        if not future.cancelled():
            future.exception()  # whoever waits for the result gets it; nobody has to
        self._line.leave(time.perf_counter() - self._started)
        self._put(None)

    def _put(self, piece: str | None) -> None:
        self._news.put_nowait(piece)
        self._begun.set()


class Gone(BlindformerError):
    """Whoever asked has left."""


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; it is cancelled where the requester leaves. The request's body has been read.

    Errors: Gone, and the work's own.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
