"""Correlations of queries to come, in memory: their keys and blocks of several runs; and work in a thread of its own,
which makes the next query's correlations while the present query runs.

Each query and party has one key, from which all its masks of that query follow. Correlations of runs to come are made
several at once: each side uses them in order, and forgets them all if another run comes.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch

from ...models.program.correlations import is_large
from ...models.program.program import Program
from ...protocols.beaver.values import Tape
from ...protocols.channel import Channel
from ...protocols.devices import CPU
from ...protocols.errors import BlindformerError
from ...protocols.streams import Stream, derive
from .messages import PartRun
from .online import rows_of_a_run
from .preprocessing_store import Ref

T = TypeVar("T")
GB = 1_000_000_000
CLOSE_TIMEOUT = 5.0  # seconds for tasks to end with their session
_CHECK = 0.5  # seconds between two checks of what is waited for
_LOOK = 0.002  # seconds between two looks at whether there is room


def query_key(seed: bytes, number: int) -> bytes:
    """The key of one query. It reveals neither the seed nor other queries' keys."""
    return derive(seed, f"query {number}")


def masks(key: bytes, device: torch.device = CPU) -> Stream:
    """All masks of one query at one party."""
    return Stream(key, "masks", device)


class RunBlock(Generic[T]):
    """The runs that are left of the last block: both sides hold the same ones, and neither makes anew what the other
    holds.

    The masks of what a conversation keeps are those of the runs before, so a block fits only one order of runs.
    """

    def __init__(self) -> None:
        self._left: deque[tuple[PartRun, T]] = deque()

    def fill(self, part_run: PartRun, program: Program, tapes: Sequence[T]) -> T:
        """Keep the correlations of the runs that follow `part_run`; return those of `part_run`."""
        first, *rest = tapes
        each = rows_of_a_run(program)
        self._left = deque(
            (part_run.model_copy(update={"rows": part_run.rows + each * number}), tape)
            for number, tape in enumerate(rest, start=1)
        )
        return first

    def take(self, part_run: PartRun) -> T | None:
        """The correlations of this run, if it is the next; else nothing is left."""
        if self._left and self._left[0][0].model_copy(update={"runs": part_run.runs}) == part_run:
            return self._left.popleft()[1]
        self._left.clear()
        return None


class SessionOver(BlindformerError):
    """The session of this work has ended."""


class BackgroundTask(Generic[T]):
    """Runs `make` at once, or when the task `after` is over. `result` raises what `make` raises.

    The interpreter waits for the thread before it ends: one that returns from torch to an interpreter that is gone
    aborts the process. So `make` must end when its session does, with its channel or by `TaskQueue.step`.
    """

    def __init__(self, make: Callable[[], T], name: str, after: BackgroundTask | None = None) -> None:
        self._make, self._after = make, after
        self._done = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"blindformer {name}")
        self._thread.start()

    def result(self, peers: Collection[Channel], what: object, check: Callable[[], None] | None = None) -> T:
        """Wait for the result. The peers, if any, get {"waiting": what} every third of their timeout, so that silence
        always means a lost peer; a lost peer ends the waiting, and so does what `check` raises, asked now and then."""
        pause = min((peer.timeout / 3 for peer in peers), default=None)
        step, silent_since = pause if check is None else _CHECK, time.monotonic()
        while not self._done.wait(step):
            if check is not None:
                check()
            if pause is not None and time.monotonic() - silent_since >= pause:
                for peer in peers:
                    peer.send_message({"waiting": what})
                silent_since = time.monotonic()
        if self._error is not None:
            raise self._error
        return self._result[0]

    def join(self, seconds: float | None) -> bool:
        """Whether the task ends, with a result or an error, within `seconds`."""
        return self._done.wait(seconds)

    def _run(self) -> None:
        try:
            if self._after is not None:
                self._after.join(None)
                self._after = None  # and its result goes, unless somebody else holds it
            self._result.append(self._make())
        except BaseException as error:
            self._error = error
        finally:
            del self._make, self._after  # free the objects that they hold
            self._done.set()


class TaskQueue:
    """A session's background tasks, one after the other, until the session ends."""

    def __init__(self) -> None:
        self._last: BackgroundTask | None = None
        self._stopped = threading.Event()

    def begin(self, make: Callable[[], T], name: str) -> BackgroundTask[T]:
        def unless_stopped() -> T:
            self.step()
            return make()

        self._last = work = BackgroundTask(unless_stopped, name, self._last)
        return work

    def step(self, number: int = 0) -> None:
        """`make` calls this between operations. Errors: SessionOver once the session has ended."""
        if self._stopped.is_set():
            raise SessionOver("session: has ended")

    def stop(self) -> None:
        """End the running task at its next step, and start no other."""
        self._stopped.set()

    def join(self, seconds: float | None) -> bool:
        """Whether all tasks end within `seconds`."""
        return self._last is None or self._last.join(seconds)

    def end(self, channel: Channel | None) -> None:
        """Stop all tasks. One that waits in `channel` is interrupted."""
        self.stop()
        if not self.join(0) and channel is not None:
            channel.interrupt()
            self.join(CLOSE_TIMEOUT)


class Pace:
    """Makes the correlations of the next run no faster than those of the present run are used, so that a party holds
    little more than one run's. Those that are small are made at once."""

    def __init__(self, tasks: TaskQueue) -> None:
        self._step = tasks.step
        self._before: Callable[[], Tape | None] = lambda: None
        self.count = 1  # of what the tape before had, or more
        self.waited = 0.0  # seconds, in all

    def made(self, tape: Tape) -> Tape:
        """The one that is used while the next ones are made."""
        self._before, self.count = weakref.ref(tape), max(1, len(tape))
        return tape

    def wait(self, ahead: int, total: int, size: int, peer: Channel | None = None) -> None:
        """Call it before there are `ahead` of `total`, which take `size` bytes: waits until as large a part of the tape
        before was used, or it is gone. `peer` waits, too. Errors: SessionOver once the session has ended."""
        self._step()
        since = sign_of_life = time.monotonic()
        while is_large(size) and (left := self.left()) and left * total > self.count * (total - ahead):
            time.sleep(_LOOK)
            self._step()
            if peer is not None and time.monotonic() - sign_of_life > peer.timeout / 3:
                peer.send_message({"waiting": "room"})
                sign_of_life = time.monotonic()
        self.waited += time.monotonic() - since

    def left(self) -> int:
        """What is left of the tape before."""
        tape = self._before()
        return 0 if tape is None else len(tape)


@dataclass
class Coming(Generic[T]):
    """The correlations of the next query: from the store (`ref`), or live; `task` once they are being made."""

    ref: Ref | None
    part_run: PartRun
    task: BackgroundTask[T] | None = None
