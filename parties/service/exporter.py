"""The supervisor's end of the metrics process: starts it, feeds it, starts it again when it dies. Never fatal."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from .logs import Log

PAUSES = (1.0, 2.0, 5.0, 15.0, 60.0)  # seconds before it is started again, the longer the oftener it died
STEADY_SECONDS = 120.0  # running so long, it starts with the first pause again


class Exporter:
    """Serves snapshots on `sock`, which listens: a metrics process that is started again takes over the same port."""

    def __init__(self, sock: socket.socket, log: Log) -> None:
        self._sock, self._log = sock, log
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._rest = b""
        self._deaths = 0
        self._since = self._again = 0.0

    @property
    def address(self) -> tuple[str, int]:
        return self._sock.getsockname()[:2]

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def feed(self, snapshot: dict[str, Any]) -> None:
        """Hand over a snapshot; start the process if it is time to. Blocks on nothing."""
        now = time.monotonic()
        if self._process is not None and self._process.poll() is not None:
            self._died(now, f"it ended with code {self._process.returncode}")
        if self._process is None:
            if now < self._again:
                return
            self._start(now)
        if self._process is not None:
            self._write(snapshot)

    def close(self) -> None:
        """End the process. Safe to call twice."""
        self._sock.close()
        if self._process is not None:
            self._hang_up()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process.kill()
            self._process.wait()
            self._process = None

    def forget(self) -> None:
        """In a child of the supervisor: let go of what is the supervisor's."""
        self._sock.close()
        if self._process is not None:
            self._hang_up()
            self._process.returncode = 0  # it is not ours to wait for

    def _start(self, now: float) -> None:
        try:
            reading, self._pipe = os.pipe()
        except OSError as error:
            self._died(now, f"it cannot be started ({error.strerror})")
            return
        command = [sys.executable, "-m", f"{__package__}.metrics", str(self._sock.fileno())]
        try:
            self._process = subprocess.Popen(
                command, stdin=reading, stdout=subprocess.DEVNULL, pass_fds=[self._sock.fileno()], cwd="/"
            )
        except OSError as error:
            self._died(now, f"it cannot be started ({error.strerror})")
            return
        finally:
            os.close(reading)
        os.set_blocking(self._pipe, False)
        self._since, self._rest = now, b""

    def _write(self, snapshot: dict[str, Any]) -> None:
        # Each snapshot holds everything, so one is left out while an earlier one is still on its way.
        data = self._rest or (json.dumps(snapshot) + "\n").encode()
        with contextlib.suppress(OSError):  # the pipe is full, or it is dead, which the next call notices
            self._rest = data[os.write(self._pipe, data) :]

    def _died(self, now: float, what: str) -> None:
        if self._process is not None and now - self._since > STEADY_SECONDS:
            self._deaths = 0
        pause = PAUSES[min(self._deaths, len(PAUSES) - 1)]
        self._deaths += 1
        self._again = now + pause
        self._hang_up()
        self._process = None
        self._log.error("metrics-died", what=f"{what}; it is started again", seconds=pause)

    def _hang_up(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1
