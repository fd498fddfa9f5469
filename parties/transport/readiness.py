"""Wait until a socket is ready: asleep, or awake for an answer that is about to come.

To fall asleep and be woken takes up to 0.1 ms, and a token of a language model waits a hundred times. So whoever
awaits a small frame first looks for it again and again, and leaves the core to others between two looks. A wait stays
asleep if the peer's last small frame came late, as over a network, and for a while after others took the core: on a
machine with more runnable processes than cores each look takes time from the peer's own work.
"""

from __future__ import annotations

import os
import select
import time

try:
    from resource import RUSAGE_THREAD, getrusage

    CORES = len(os.sched_getaffinity(0))
except (ImportError, AttributeError):  # not Linux
    CORES = 1

LOOKING_SECONDS = 0.001  # the longest wait awake
SMALL_BYTES = 16384  # the largest frame that is awaited awake: its sender does not need this core, too
ASLEEP_SECONDS = 0.05  # after others took the core


class Readiness:
    """Of one socket, by its file descriptor. Used by one thread at a time."""

    def __init__(self, fileno: int) -> None:
        self._fileno, self._mask = fileno, select.POLLIN
        self._poll = select.poll()
        self._poll.register(fileno, self._mask)
        self._prompt = CORES > 1  # whether the last small frame came within LOOKING_SECONDS
        self._asleep_until = 0.0

    def wait(self, reading: bool, writing: bool, deadline: float, small: bool) -> bool:
        """Wait until the socket can be read or written. False if `deadline` (time.monotonic) passed first.

        small    a frame of at most SMALL_BYTES is all that is waited for
        """
        mask = (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0)
        if mask != self._mask:
            self._mask = mask
            self._poll.modify(self._fileno, mask)
        start = time.monotonic()
        ready = small and self._prompt and start > self._asleep_until and self._look(start)
        ready = ready or bool(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if small:
            self._prompt = CORES > 1 and time.monotonic() - start < LOOKING_SECONDS
        return ready

    def _look(self, start: float) -> bool:
        """Wait awake. False if nothing came in LOOKING_SECONDS."""
        switches, ready, now = getrusage(RUSAGE_THREAD).ru_nivcsw, False, start
        while not ready and now - start < LOOKING_SECONDS:
            os.sched_yield()
            ready, now = bool(self._poll.poll(0)), time.monotonic()
        if getrusage(RUSAGE_THREAD).ru_nivcsw > switches:
            self._asleep_until = now + ASLEEP_SECONDS
        return ready
