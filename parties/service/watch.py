"""Whether the dealer answers, asked every few seconds by a process that is forked for it: nobody waits for its silence.

It shows the server's certificate and says nothing of any session, so the dealer learns that the server runs.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from ..transport.frames import printable
from ..transport.handshake import KNOCK_SECONDS
from .child import Control
from .control import BrokenControl, ChildLine, Failed
from .logs import Log

EVERY = 2.0  # seconds between two questions; twice without an answer, and the party is gone
Fork = Callable[[Callable[[Control], None]], tuple[int, socket.socket]]


class PartyWatch:
    """In a supervisor, whose children see `gone` change, too. `ask`: raises a PeerError if `party` is gone."""

    def __init__(self, party: str, ask: Callable[[], None]) -> None:
        self.party, self._ask = party, ask
        self._flag = mmap.mmap(-1, 1)  # shared with children
        self._pid, self._until, self._again, self._misses = 0, 0.0, 0.0, 0
        self._line: ChildLine | None = None

    @property
    def gone(self) -> bool:
        return self._flag[0] == 1

    def check(self) -> None:
        """In a child: ask again if the party was gone. Errors: PeerError if it still is."""
        if self.gone:
            self._ask()

    def turn(self, fork: Fork, log: Log) -> None:
        """Ask if it is time to, or see what came of the last question. Waits for nothing."""
        now = time.monotonic()
        if self._line is not None:
            ended, status = os.waitpid(self._pid, os.WNOHANG)
            if not ended and now < self._until:
                return
            self._note("" if ended and status == 0 else self._why(self._line), log)
            self.end()
            self._again = now + (0.0 if self._misses == 1 else EVERY)
        elif now >= self._again:
            with suppress(OSError):  # there is no room for a process: later, perhaps
                self._pid, sock = fork(lambda control: self._ask())
                self._line, self._until = ChildLine(sock), now + 2 * KNOCK_SECONDS
            self._again = now + EVERY

    def end(self) -> None:
        """Safe to call twice."""
        self.let_go()
        if self._pid:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._pid, signal.SIGKILL)
                os.waitpid(self._pid, 0)
        self._pid = 0

    def let_go(self) -> None:
        """In another child, too: of the line."""
        if self._line is not None:
            self._line.close()
        self._line = None

    def _why(self, line: ChildLine) -> str:
        with suppress(BrokenControl, ValueError):
            for report in line.read() or ():
                if isinstance(report, Failed):
                    return report.what
        return f"{self.party}: did not answer in {KNOCK_SECONDS:g} seconds; see whether it runs"

    def _note(self, what: str, log: Log) -> None:
        self._misses = self._misses + 1 if what else 0
        if self._misses > 1 and not self.gone:
            self._flag[0] = 1
            log.error(f"{self.party}-gone", what=printable(what, 400))
        elif not what and self.gone:
            self._flag[0] = 0
            log.info(f"{self.party}-back", what=f"the {self.party} answers again")
