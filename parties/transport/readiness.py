"""Wait until a socket is ready: spin for a moment, then block.

To block and be woken takes up to 0.1 ms, and a token of a language model waits a hundred times. So whoever awaits a
small frame first polls for it up to a millisecond, and yields the core between two polls. A wait blocks at once if the
peer's last small frame came late, as over a network, and for a while after others took the core: on a machine with more
runnable processes than cores, spinning takes time from the peer's own work.
"""

from __future__ import annotations

import os
import select
import time

from ...cores import cores

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:  # not Linux: nothing tells whether others want the core
    CAN_SPIN = False
else:
    CAN_SPIN = cores() > 1

SPIN_SECONDS = 0.001  # at most, for one frame
SPIN_BYTES = 16384  # the largest frame to spin for: its sender does not need this core, too
BLOCK_SECONDS = 0.05  # how long waits block at once after others took the core


class Readiness:
    """Of one socket, by its file descriptor. Used by one thread at a time."""

    def __init__(self, fileno: int) -> None:
        self._fileno, self._mask = fileno, select.POLLIN
        self._poll = select.poll()
        self._poll.register(fileno, self._mask)
        self._prompt = CAN_SPIN  # whether the last small frame came within SPIN_SECONDS
        self._block_until = 0.0

    def wait(self, reading: bool, writing: bool, deadline: float, spin: bool) -> bool:
        """Wait until the socket can be read or written. False if `deadline` (time.monotonic) passed first.

        spin    a frame of at most SPIN_BYTES is awaited, and none of it is here
        """
        mask = (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0)
        if mask != self._mask:
            self._mask = mask
            self._poll.modify(self._fileno, mask)
        start = time.monotonic()
        ready = spin and self._prompt and start > self._block_until and self._spin(start)
        ready = ready or bool(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if spin:
            self._prompt = CAN_SPIN and time.monotonic() - start < SPIN_SECONDS
        return ready

    def _spin(self, start: float) -> bool:
        """Poll until the socket is ready. False if it was not in SPIN_SECONDS."""
        switches, ready, now = getrusage(RUSAGE_THREAD).ru_nivcsw, False, start
        while not ready and now - start < SPIN_SECONDS:
            os.sched_yield()
            ready, now = bool(self._poll.poll(0)), time.monotonic()
        if getrusage(RUSAGE_THREAD).ru_nivcsw > switches:
            self._block_until = now + BLOCK_SECONDS
        return ready
