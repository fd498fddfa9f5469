"""A bounded queue of requests for one model. A request is cancelled when its caller disconnects.

Callers take turns: whoever was served longest ago comes first, and requests of one caller in their order. If the queue
is full, the caller with most requests in it loses its last one to a caller with fewer: a flood delays its sender alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from starlette.requests import Request

from ...errors import BlindformerError
from .problems import LIMITED, ApiError

T = TypeVar("T")
FIRST_SECONDS = 1.0  # the guess of how long a request takes, before any has run


class RequestQueue:
    """`at_once` requests run, each in a thread; `most` wait. `seconds`: the moving average of what a request takes."""

    def __init__(self, at_once: int, most: int) -> None:
        self.at_once, self.most = at_once, most
        self.running = 0
        self.seconds = FIRST_SECONDS
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []  # callers
        self._served, self._turn = dict[str, int](), 0  # by caller, the last turn
        self._threads = ThreadPoolExecutor(at_once, "gateway")
        self._jobs: set[Job[Any]] = set()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    async def begin(self, work: Callable[[Job[T]], T], caller: str = "", *, upkeep: bool = False) -> Job[T]:
        """Wait for a free thread, and start `work` in it. `upkeep`: it answers no request, so `seconds` leaves it out.
        Errors: ApiError (429) where too many requests wait."""
        if self.waiting or self.running >= self.at_once:
            await self._turn_of(caller)
        else:
            self._serve(caller)
        job, started = Job(self._threads, work), time.perf_counter()
        self._jobs.add(job)

        def leave() -> None:
            self._jobs.remove(job)
            if not upkeep:
                self.seconds += (time.perf_counter() - started - self.seconds) / 4
            self._leave()

        job.on_end(leave)
        return job

    async def _turn_of(self, caller: str) -> None:
        if self.waiting >= self.most:
            self._drop_for(caller)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((caller, turn))
        try:
            await turn
        except BaseException:
            if (caller, turn) in self._waiting:
                self._waiting.remove((caller, turn))
            elif not turn.cancelled() and turn.exception() is None:  # it is served, and has left
                self._leave()
            raise

    def _drop_for(self, caller: str) -> None:
        """Errors: ApiError unless another caller has more requests waiting, which then loses its last one."""
        wait = self.seconds * (self.waiting + 1) / self.at_once
        what = f"{self.waiting} requests wait for this model; ask again later, or raise [gateway] queue"
        full = ApiError(429, what, kind=LIMITED, code="rate_limit_exceeded", retry_after=wait)
        counts = Counter(other for other, _ in self._waiting)
        largest = max(counts, key=lambda other: counts[other], default=caller)
        if counts[largest] <= counts[caller] + 1:
            raise full
        last = max(place for place, (other, _) in enumerate(self._waiting) if other == largest)
        self._waiting.pop(last)[1].set_exception(full)

    def _serve(self, caller: str) -> None:
        self.running += 1
        self._turn += 1
        self._served[caller] = self._turn

    def _leave(self) -> None:
        self.running -= 1
        while self._waiting and self.running < self.at_once:
            caller, turn = min(self._waiting, key=lambda one: self._served.get(one[0], 0))
            self._waiting.remove((caller, turn))
            if not turn.done():  # else its caller has left
                self._serve(caller)
                turn.set_result(None)

    def stop(self) -> None:
        """Cancel what runs, after its current step."""
        for job in list(self._jobs):
            job.stop()

    def close(self) -> None:
        """Wait until the threads have ended."""
        self._threads.shutdown()


class Job(Generic[T]):
    """Work in a thread, which may send pieces of text while it runs. `stop` asks it to end: it reads `stopped`."""

    def __init__(self, threads: Executor, work: Callable[[Job[T]], T]) -> None:
        """In a running loop."""
        self._loop, self._news = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        self._stop, self._begun = threading.Event(), asyncio.Event()
        self._future = self._loop.run_in_executor(threads, work, self)
        self._future.add_done_callback(self._over)

    def on_end(self, call: Callable[[], object]) -> None:
        self._future.add_done_callback(lambda _: call())

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
        """Wait for the first piece or the end, for `seconds` at most. Errors: the work's, if it has ended."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._begun.wait()
        if self._future.done():
            self._future.result()

    async def pieces(self, patience: float | None = None) -> AsyncIterator[str]:
        """Pieces as they come; "" after each `patience` seconds without one."""
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
            future.exception()  # marks it as retrieved: perhaps nobody waits for the result
        self._put(None)

    def _put(self, piece: str | None) -> None:
        self._news.put_nowait(piece)
        self._begun.set()


class Gone(BlindformerError):
    """The caller has disconnected."""


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the caller disconnects. The request's body has been read.

    Errors: Gone, and those of `work`.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Gone
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.wait({working, leaving})


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
