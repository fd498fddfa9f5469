"""The service's side of its workers: starts them, gives each one query at a time, replaces those that die.

Service and worker talk over a pair of sockets: a line of JSON, the head, then the bytes that the head announces.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, BinaryIO

from ....protocols.errors import BlindformerError
from ..metrics import Backoff
from .bodies import Refusal

START_SECONDS = 600.0  # to import torch, to load a model, and to plan its circuits
STEADY_ANSWERS = 3  # after so many good ones a worker does well
MOST_HEAD = 1 << 22  # bytes


class WorkerDied(BlindformerError):
    """A worker ended in the middle of a query. Another takes its place."""


class WorkerProcess:
    """One process. `keys`: names of those that it has in memory, as far as is known here."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None
        self.keys: set[str] = set()
        self.backoff, self.answers = Backoff(), 0

    async def start(self) -> dict[str, Any]:
        """What it says when it is ready. Errors: BlindformerError with its own words."""
        mine, its = socket.socketpair()
        with its:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.worker", str(its.fileno()), *self._words],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[its.fileno()], start_new_session=True,
            )  # fmt: skip
        self._reader, self._writer = await asyncio.open_connection(sock=mine, limit=MOST_HEAD)
        self.keys.clear()
        self.answers = 0
        async with asyncio.timeout(START_SECONDS):
            head, _ = await self.hear()
        if "failed" in head:
            raise BlindformerError(head["failed"])
        return head

    async def say(self, head: dict[str, Any], body: bytes = b"") -> None:
        """Errors: WorkerDied."""
        try:
            self._writer.write(pack_message(head, body))
            await self._writer.drain()
        except (ConnectionError, OSError):
            raise WorkerDied("the worker has ended") from None

    async def hear(self) -> tuple[dict[str, Any], bytes]:
        """Errors: WorkerDied."""
        try:
            head = json.loads(await self._reader.readline())
            return head, await self._reader.readexactly(head["bytes"])
        except (asyncio.IncompleteReadError, ConnectionError, ValueError, KeyError):
            raise WorkerDied("the worker has ended") from None

    async def ask(self, head: dict[str, Any], body: bytes = b"") -> dict[str, Any]:
        """One question, one answer. Errors: WorkerDied; Refusal, where it will not have what it was given."""
        await self.say(head, body)
        answer, _ = await self.hear()
        if "refused" in answer:
            raise Refusal(400, answer["refused"])
        if "failed" in answer:
            raise Refusal(500, answer["failed"])
        return answer

    async def end(self) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # and the processes that it forked
            await asyncio.to_thread(self._process.wait)
            self._writer.close()


class Workers:
    """`count` of them, started with `words` (worker.py). `died` is told why, whenever one did."""

    def __init__(self, count: int, words: Sequence[str], seconds: float, died: Callable[[str], None]) -> None:
        self._all = [WorkerProcess(words) for _ in range(count)]
        self._seconds, self._died = seconds, died
        self._idle: list[WorkerProcess] = []
        self._given_back = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> dict[str, Any]:
        """What the workers say of the model. Errors: BlindformerError."""
        ready = await asyncio.gather(*(worker.start() for worker in self._all))
        self._idle += self._all
        return ready[0]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(worker.end() for worker in self._all), return_exceptions=True)

    @asynccontextmanager
    async def worker(self, keys: str) -> AsyncIterator[WorkerProcess]:
        """One that is idle, for one query; one that has the keys, if there is one.

        Errors: Refusal (504) when the query takes too long; (500) when the worker dies.
        """
        while not self._idle:
            self._given_back.clear()
            await self._given_back.wait()
        worker = next((worker for worker in self._idle if keys in worker.keys), self._idle[0])
        self._idle.remove(worker)
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
            if whole:
                worker.keys.add(keys)
                worker.answers += 1
                if worker.answers > STEADY_ANSWERS:
                    worker.backoff.reset()
                self._give_back(worker)
            else:
                self._spawn(self._replace(worker))

    def forget(self, keys: str) -> None:
        """Let idle workers drop a client's keys. A busy one drops them when it needs the room."""
        for worker in [worker for worker in self._idle if keys in worker.keys]:
            self._idle.remove(worker)
            self._spawn(self._drop_keys(worker, keys))

    async def _drop_keys(self, worker: WorkerProcess, keys: str) -> None:
        worker.keys.discard(keys)
        with suppress(WorkerDied, Refusal):
            await worker.ask({"do": "forget", "keys": keys})
        self._give_back(worker)

    def _give_back(self, worker: WorkerProcess) -> None:
        self._idle.append(worker)
        self._given_back.set()

    async def _replace(self, worker: WorkerProcess) -> None:
        """It died, or it is in the middle of something nobody wants."""
        while True:
            await worker.end()
            await asyncio.sleep(worker.backoff.ended())
            self._died("a worker ended and is replaced")
            try:
                await worker.start()
            except (BlindformerError, OSError, TimeoutError) as error:
                self._died(f"a worker cannot start: {error}")
                continue
            self._give_back(worker)
            return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def pack_message(head: dict[str, Any], body: bytes = b"") -> bytes:
    return json.dumps({**head, "bytes": len(body)}).encode() + b"\n" + body


def read_message(stream: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """In a worker: the next message; None when the service is gone."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    head = json.loads(line)
    body = stream.read(head["bytes"])
    return (head, body) if len(body) == head["bytes"] else None
