"""Work in a thread of its own: the next query's correlations are made while the present query runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Generic, TypeVar

from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError

T = TypeVar("T")


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

    def result(self, peers: Collection[Channel], what: object) -> T:
        """Wait for the result. The peers get {"waiting": what} every third of their timeout, so that silence always
        means a lost peer; a lost peer ends the waiting."""
        while not self._done.wait(min(peer.timeout for peer in peers) / 3):
            for peer in peers:
                peer.send_message({"waiting": what})
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
