"""One replica, on the node that the cluster gave it: the service's own command, as a process."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from ...protocols.errors import BlindformerError

START_SECONDS = 300.0
LOOK_SECONDS = 5.0
SILENT_SECONDS = 60.0  # until another takes its place: a busy machine answers late


class ReplicaError(BlindformerError):
    """The replica did not start, or has ended."""


class Replica:
    """An actor of the cluster. `command`: serve or dealer. `settings`: its configuration, as TOML. When the actor's
    process ends, the replica's lifeline does, and it ends, too."""

    def __init__(self, command: str, settings: str) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="blindformer-replica-")
        config = Path(self._scratch.name, "blindformer.toml")
        config.write_text(settings)
        listen = ("--listen", f"{_own_address()}:0", "--metrics", "127.0.0.1:0")
        words = [sys.executable, "-m", "blindformer", command, "--config", str(config), *listen]
        self._process = subprocess.Popen(
            [*words, "--log-format", "json", "--lifeline"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
        )
        ready = self._ready()
        self.address, self._metrics = ready["address"], ready["metrics"]
        self._sessions, self._heard = 0, time.monotonic()
        threading.Thread(target=self._pass_on, daemon=True).start()

    def look(self) -> tuple[str, int]:
        """(host:port, open sessions). Errors: ReplicaError."""
        if self._process.poll() is not None:
            raise ReplicaError(f"the replica at {self.address} has ended")
        try:
            with urllib.request.urlopen(f"http://{self._metrics}/metrics", timeout=LOOK_SECONDS) as reply:
                lines = reply.read().decode().splitlines()
        except (OSError, HTTPException):
            if time.monotonic() - self._heard > SILENT_SECONDS:
                raise ReplicaError(f"the replica at {self.address} said nothing for {SILENT_SECONDS:g} s") from None
            return self.address, self._sessions
        counts = [line.split()[1] for line in lines if line.startswith("blindformer_sessions ")]
        self._sessions, self._heard = int(float(counts[0])) if counts else 0, time.monotonic()
        return self.address, self._sessions

    def drain(self) -> None:
        """Let running queries finish, then end."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def _ready(self) -> dict[str, Any]:
        assert self._process.stderr is not None
        last = ""
        timer = threading.Timer(START_SECONDS, self._process.kill)
        timer.start()
        try:
            for text in self._process.stderr:
                last = text.strip() or last
                try:
                    line = json.loads(text)
                except ValueError:
                    continue
                if line.get("event") == "ready":
                    return line
        finally:
            timer.cancel()
        raise ReplicaError(last.removeprefix("blindformer: ") or "ended without a word")

    def _pass_on(self) -> None:
        """Its log is the node's."""
        assert self._process.stderr is not None
        for text in self._process.stderr:
            sys.stderr.write(text)


def _own_address() -> str:
    """Where others reach this node."""
    import ray

    address = ray.util.get_node_ip_address()
    try:
        socket.create_server((address, 0)).close()
    except OSError:
        return "127.0.0.1"
    return address
