"""Work that goes on in a thread of its own: the next query's correlations while the present query runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError

T = TypeVar("T")


class SessionOver(BlindformerError):
    """Nobody waits for this work any more."""


class BackgroundTask(Generic[T]):
    """`make`, begun at once, or when `after` is over. What it raises is raised where the result is asked for.

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

    def result(self, peers: Collection[Channel], what: object) -> T:
        """Wait for it. The peers hear {"waiting": what} every third of their timeout, so that a silence always means
        that somebody is gone; that one of them is gone ends the waiting."""
        while not self._done.wait(min(peer.timeout for peer in peers) / 3):
            for peer in peers:
                peer.send_message({"waiting": what})
        if self._error is not None:
            raise self._error
        return self._result[0]

    def join(self, seconds: float | None) -> bool:
        """Whether it is over, one way or the other, within `seconds`."""
        return self._done.wait(seconds)

    def _run(self) -> None:
        try:
            if self._after is not None:
                self._after.join(None)
            self._result.append(self._make())
        except BaseException as error:
            self._error = error
        finally:
            del self._make, self._after  # and what they hold on to
            self._done.set()


class TaskQueue:
    """A session's work, one after the other, until the session ends."""

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
        """For `make` to call between operations. Errors: SessionOver once the session has ended."""
        if self._stopped.is_set():
            raise SessionOver("session: has ended")

    def stop(self) -> None:
        """End what goes on at its next step, and begin with nothing new."""
        self._stopped.set()

    def join(self, seconds: float | None) -> bool:
        """Whether all of it is over within `seconds`."""
        return self._last is None or self._last.join(seconds)
