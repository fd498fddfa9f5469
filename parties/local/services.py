"""A dealer and a server of one's own on this machine: the services themselves, as two processes, for as long as needed.

The client is the calling process, so there are three parties in three processes, and nothing tells them from a
deployment but the addresses: certificates are made for the occasion, and the services end when this process does.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...protocols.errors import BlindformerError
from ..certificates.issuing import make_certificates
from ..config import Address, parse_address
from ..registry import find_served

LOCAL = "local"
READY_SECONDS = 120.0  # to import torch and load a model, on a machine that is busy
FAREWELL_SECONDS = 5.0


class LocalServices:
    """Running from construction until `close`. `addresses`: by role; `certificates`: a folder with all roles' keys."""

    def __init__(self, folder: Path, timeout: float, protocol: str = "beaver", more: Sequence[str] = ()) -> None:
        """`folder`: a compiled one, with the server's part in it or beside it. `more`: options of the server.

        Errors: BlindformerError; nothing is left running.
        """
        self._scratch = Path(tempfile.mkdtemp(prefix="blindformer-"))  # mode 0700
        self._running: list[_Service] = []
        self.certificates = self._scratch / "certificates"
        self.addresses: dict[str, Address] = {}
        try:
            make_certificates(self.certificates, days=30)
            options = ["--certs", str(self.certificates), "--timeout", str(timeout)]
            for role in find_served(protocol).helpers:
                self._start(role, [role, *options])
                more = [*more, f"--{role}", str(self.addresses[role])]
            near = [place / "server" for place in (folder, folder.parent) if (place / "server").is_dir()]
            server = str(next(iter(near), folder))
            self._start("server", ["serve", server, "--protocol", protocol, *options, *more])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End both processes and remove the certificates. Safe to call twice."""
        for service in reversed(self._running):
            service.end()
        self._running.clear()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _start(self, role: str, words: list[str]) -> None:
        service = _Service(role, words)
        self._running.append(service)
        self.addresses[role] = parse_address(service.ready(READY_SECONDS)["address"])


class _Service:
    """One service's process. Its log comes on stderr as JSON lines; its stdin is its lifeline."""

    def __init__(self, role: str, words: list[str]) -> None:
        self.role = role
        self._said: deque[str] = deque(maxlen=20)
        self._ready: dict[str, Any] | None = None
        self._news = threading.Event()
        fixed = ["--listen", "127.0.0.1:0", "--log-format", "json", "--lifeline"]
        # A session of its own: Ctrl-C reaches this process alone, which then ends the services in order.
        # -P: a folder that happens to be the working directory must not shadow modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "blindformer.parties.cli", *words, *fixed],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True, name=f"log of the {role}")
        self._reader.start()

    def ready(self, seconds: float) -> dict[str, Any]:
        """What it logs when it serves. Errors: BlindformerError with its own last words."""
        if not self._news.wait(seconds):
            raise BlindformerError(
                f"{self.role}: is not ready after {seconds:g} seconds; see what keeps this machine busy"
            )
        if self._ready is None:
            self._process.wait(FAREWELL_SECONDS)
            words = self._said[-1] if self._said else f"ended with code {self._process.returncode}"
            raise BlindformerError(f"{self.role}: {words.removeprefix('blindformer: ')}")
        return self._ready

    def end(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for ask in (self._process.terminate, self._process.kill):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(FAREWELL_SECONDS)
                break
            ask()
        self._process.wait()
        self._reader.join(FAREWELL_SECONDS)

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for text in stream:
                line = _parsed(text)
                if line is None:
                    self._said.append(text.strip())
                elif line.get("event") == "ready":
                    self._ready = line
                    self._news.set()
        self._news.set()  # it has ended


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) else None
