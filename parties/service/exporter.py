"""The supervisor's end of the metrics process: starts it, feeds it, starts it again when it dies. Never fatal."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from typing import IO

from .backoff import Backoff
from .logs import Log

STEADY_SECONDS = 120.0  # running so long, it does well


class Exporter:
    """Serves snapshots on `sock`, which listens: a metrics process that is started again takes over the same port."""

    def __init__(self, sock: socket.socket, log: Log) -> None:
        self._sock, self._log = sock, log
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._backoff = Backoff()
        self._since = self._again = 0.0

    @property
    def address(self) -> tuple[str, int]:
        return self._sock.getsockname()[:2]

    def feed(self, text: str, stopping: bool) -> None:
        """Hand over a snapshot; start the process if it is time to. Blocks on nothing."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            if now - self._since > STEADY_SECONDS:
                self._backoff.reset()
            _pipe(self._process).close()
            self._ended(now, f"it ended with code {self._process.returncode}")
        if self._process is None and now >= self._again:
            try:
                self._process, self._since, self._rest = self._started(), now, b""
            except OSError as error:
                self._ended(now, f"it cannot be started ({error.strerror})")
        if self._process is not None:
            # Each snapshot holds everything, so one is left out while an earlier one is still on its way.
            data = self._rest or (json.dumps({"text": text, "stopping": stopping}) + "\n").encode()
            with contextlib.suppress(OSError):  # the pipe is full, or it is dead, which the next call notices
                self._rest = data[os.write(_pipe(self._process).fileno(), data) :]

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._sock.close()
        if self._process is not None:
            _pipe(self._process).close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """In a child of the supervisor: let go of what is the supervisor's."""
        self._sock.close()
        if self._process is not None:
            _pipe(self._process).close()
            self._process.returncode = 0  # it is not ours to wait for

    def _started(self) -> subprocess.Popen[bytes]:
        """Errors: OSError."""
        number = self._sock.fileno()
        words = [sys.executable, "-m", f"{__package__}.metrics_server", str(number)]
        process = subprocess.Popen(
            words, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, pass_fds=[number], cwd="/"
        )
        os.set_blocking(_pipe(process).fileno(), False)
        return process

    def _ended(self, now: float, what: str) -> None:
        pause = self._backoff.ended()
        self._again, self._process = now + pause, None
        self._log.error("metrics-died", what=f"{what}; it is started again", seconds=pause)


def _pipe(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None
    return process.stdin
