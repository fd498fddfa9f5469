"""The service's side of its workers: starts them, gives each one job at a time, replaces those that die."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ....protocols.errors import BlindformerError
from .lines import packed, read
from .refusals import Refusal, busy

START_SECONDS = 600.0  # to import torch, to load a model, and to plan its circuits
PAUSES = (0.2, 1.0, 5.0, 30.0)  # before a worker that died is replaced, the longer the oftener
STEADY_ANSWERS = 3  # after so many good ones, the first pause again


class WorkerDied(BlindformerError):
    """A worker ended in the middle of a job. Another takes its place."""


class WorkerProcess:
    """One process. `held`: names of the keys that it has in memory, as far as is known here."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self.held: set[str] = set()
        self.deaths, self.answers = 0, 0

    async def start(self) -> dict[str, Any]:
        """What it says when it is ready. Errors: BlindformerError with its own words."""
        mine, its = socket.socketpair()
        with its:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", f"{__package__}.worker", str(its.fileno()), *self._words,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, pass_fds=[its.fileno()],
                start_new_session=True,
            )  # fmt: skip
        self._reader, self._writer = await asyncio.open_connection(sock=mine)
        self.held.clear()
        async with asyncio.timeout(START_SECONDS):
            head, _ = await self.hear()
        if "failed" in head:
            raise BlindformerError(head["failed"])
        return head

    async def say(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Errors: WorkerDied."""
        try:
            self._writer.write(packed(head, body))
            await self._writer.drain()
        except (ConnectionError, OSError):
            raise WorkerDied("the worker has ended") from None

    async def hear(self) -> tuple[dict[str, Any], bytes]:
        """Errors: WorkerDied."""
        try:
            return await read(self._reader)
        except (asyncio.IncompleteReadError, ConnectionError, ValueError, KeyError):
            raise WorkerDied("the worker has ended") from None

    async def ask(self, head: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        """One question, one answer. Errors: WorkerDied; Refusal, where it will not have what it was given."""
        await self.say(head, body)
        found, _ = await self.hear()
        if "refused" in found:
            raise Refusal(400, found["refused"])
        if "failed" in found:
            raise Refusal(500, found["failed"])
        return found

    async def end(self) -> None:
        with contextlib.suppress(ProcessLookupError, AttributeError):
            self._process.kill()
            await self._process.wait()
            self._writer.close()


class Pool:
    """`count` workers, started with `words` (worker.py).

    queue  jobs that may wait
    each   of them, how many of one certificate (its running ones among them)
    died   is told why, whenever a worker did
    """

    def __init__(
        self,
        count: int,
        words: Sequence[str],
        *,
        queue: int,
        each: int,
        seconds: float,
        died: Callable[[str], None],
    ) -> None:
        self.workers = [WorkerProcess(words) for _ in range(count)]
        self._free: list[WorkerProcess] = []
        self._places = asyncio.Semaphore(0)
        self._queue, self._each, self._seconds, self._died = queue, each, seconds, died
        self._holding: dict[str, int] = {}
        self._repairs: set[asyncio.Task[None]] = set()
        self.waiting = self.running = 0
        self.usual = 5.0  # seconds of a job, for telling when to come back

    @property
    def room(self) -> int:
        """Jobs that may be here at once."""
        return self._queue + len(self.workers)

    async def start(self) -> dict[str, Any]:
        """What the workers say of the model. Errors: BlindformerError."""
        ready = await asyncio.gather(*(worker.start() for worker in self.workers))
        for worker in self.workers:
            self._give(worker)
        return ready[0]

    async def close(self) -> None:
        for task in self._repairs:
            task.cancel()
        await asyncio.gather(*(worker.end() for worker in self.workers), return_exceptions=True)

    def admit(self, owner: str) -> None:
        """Whether one more job would find a place. Errors: Refusal (503)."""
        if self._holding.get(owner, 0) >= self._each:
            raise busy("this certificate's places are taken", self.usual)
        if self.waiting >= self._queue and not self._free:
            raise busy("its queue is full", self.usual * (1 + self.waiting / len(self.workers)))

    @asynccontextmanager
    async def place(self, owner: str, keys: str) -> AsyncIterator[WorkerProcess]:
        """A worker, for one job of this certificate; one that has the keys, if it is free.

        Errors: Refusal (503) when too many wait; (504) when the job takes too long; (500) when the worker dies.
        """
        self.admit(owner)
        self._holding[owner] = self._holding.get(owner, 0) + 1
        try:
            worker = await self._take(keys)
            self.running += 1
            whole = False
            try:
                async with asyncio.timeout(self._seconds):
                    yield worker
                whole = True
            except TimeoutError:
                raise Refusal(504, f"the query took longer than {self._seconds:g} seconds") from None
            except Refusal:
                whole = True
                raise
            except WorkerDied:
                raise Refusal(500, "the worker failed on this; it is replaced, and nobody else is affected") from None
            finally:
                self.running -= 1
                self._back(worker, keys, whole)
        finally:
            self._holding[owner] -= 1
            if not self._holding[owner]:
                del self._holding[owner]

    async def forget(self, keys: str) -> None:
        """Let idle workers drop a client's keys. A busy one drops them when it needs the room."""
        for worker in [worker for worker in self._free if keys in worker.held]:
            if worker not in self._free or self._places.locked():
                continue
            await self._places.acquire()  # at once: it is not locked
            self._free.remove(worker)
            worker.held.discard(keys)
            with contextlib.suppress(WorkerDied, Refusal):
                await worker.ask({"do": "forget", "keys": keys})
            self._give(worker)

    async def _take(self, keys: str) -> WorkerProcess:
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        worker = next((worker for worker in self._free if keys in worker.held), self._free[0])
        self._free.remove(worker)
        return worker

    def _give(self, worker: WorkerProcess) -> None:
        self._free.append(worker)
        self._places.release()

    def _back(self, worker: WorkerProcess, keys: str, whole: bool) -> None:
        if whole:
            worker.held.add(keys)
            worker.answers += 1
            if worker.answers > STEADY_ANSWERS:
                worker.deaths = 0
            self._give(worker)
            return
        task = asyncio.create_task(self._repair(worker))
        self._repairs.add(task)
        task.add_done_callback(self._repairs.discard)

    async def _repair(self, worker: WorkerProcess) -> None:
        """Replace a worker that died, or that is in the middle of something nobody wants."""
        while True:
            await worker.end()
            await asyncio.sleep(PAUSES[min(worker.deaths, len(PAUSES) - 1)])
            worker.deaths, worker.answers = worker.deaths + 1, 0
            self._died("a worker ended and is replaced")
            try:
                await worker.start()
            except (BlindformerError, OSError, TimeoutError) as error:
                self._died(f"a worker cannot start: {error}")
                continue
            self._give(worker)
            return
