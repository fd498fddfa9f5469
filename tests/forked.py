"""Commands of the command line as processes that need not import torch, which takes seconds of a core."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from blindformer.parties.launch.fork_server import shared


class Forked:
    """What tests ask of subprocess.Popen."""

    def __init__(
        self, words: Sequence[str], files: Mapping[int, int], cwd: Path | None = None, **environment: str
    ) -> None:
        """`files`: as `ForkServer.fork`."""
        self._server = shared()
        self._process = self._server.fork(words, files, {**os.environ, **environment}, cwd)
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._code(0.0)

    def wait(self, timeout: float | None = None) -> int:
        if (code := self._code(timeout)) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return code

    def _code(self, seconds: float | None) -> int | None:
        code = self._process.code(seconds)
        assert not self._server.gone, "the fork server has ended, so nobody knows how its processes do"
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
