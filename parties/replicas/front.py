"""The one address of several replicas: it proves who it is, hears who comes, and says where to go.

All who come to one session, a client and a server to their dealer, a helper and its client to their server, are sent to
one replica: the first one's is noted in a file of the session's name. It is chosen by lot of two, the one with fewer
sessions when they were counted last: many who come within a second do not all go to the same.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...models.artifacts import programs_with_adapters
from ...protocols.errors import BlindformerError, PeerProtocolError
from ..config import Settings, load_settings
from ..service.child import Control
from ..service.dealer import DealerService
from ..service.local_options import LocalOptions
from ..service.server import HELPERS
from ..service.service import TOGETHER, StartError
from ..service.session_handler import SessionHandler
from ..service.supervisor import ConnectionKind
from ..session.compute_slots import SlotsBusy
from ..session.messages import SAME_VERSION
from ..transport.handshake import Hello
from ..transport.tls import TlsChannel

RETRY_SECONDS = 2.0  # where no replica is ready
FORGET_SECONDS = 120.0  # a session whose parties have not all come by then, or in twice the timeout, has ended


class Front(SessionHandler):
    """Serves as `role`, through replicas. Made before the first fork; the cluster's driver is another process."""

    command: str
    # Its visits are short, and all of a deployment come to it.
    bounds: Mapping[str, float] = {"pending_seconds": 30.0}

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        super().__init__(settings, scratch, local)
        mine = getattr(settings, self.role)
        self.ready_file, self.assigned = scratch / "replicas.json", scratch / "sessions"
        self.assigned.mkdir()
        self._order: dict[str, Any] = {
            "number": 0,
            "command": self.command,
            "settings": as_toml(settings, self.role),
            "replicas": mine.replicas,
            "cores": float(mine.workers or 1),
            "grace": mine.grace,
            "file": str(self.ready_file),
        }
        self._swept = time.monotonic()
        self._driver = self._start()
        while not read_ready(self.ready_file):
            if self._driver.poll() is not None:
                raise StartError("no replica could be started; what is wrong stands above")
            time.sleep(0.1)
        self.about = f"{mine.replicas} replicas of a Ray cluster"

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        with self.aborting(channel):
            try:
                hello = Hello.model_validate(first)
            except ValidationError:
                raise PeerProtocolError(channel.peer, "sent no valid hello", SAME_VERSION) from None
            if not hello.session:
                raise PeerProtocolError(channel.peer, "named no session", SAME_VERSION)
            try:
                self.introduce(channel, hello, control)
                address = self._choose(hello.session)
            except SlotsBusy:  # which is said after a hello
                channel.send_message(hello.model_copy(update={"role": self.role}).model_dump())
                raise
            channel.send_message({"moved": address})
            channel.close()

    def kind(self, role: str) -> ConnectionKind:
        return "visit"

    def on_turn(self) -> None:
        """Start the driver again if it has ended, and forget sessions of a while ago."""
        super().on_turn()
        if self._driver.poll() is not None:
            self._driver = self._start()
        if time.monotonic() > self._swept + FORGET_SECONDS / 10:
            self._swept = time.monotonic()
            before = time.time() - max(FORGET_SECONDS, 2 * self.timeout)
            for path in self.assigned.iterdir():
                with suppress(OSError):  # a child has just removed it
                    if path.stat().st_mtime < before:
                        path.unlink()

    def gauges(self) -> Mapping[str, float]:
        return {**super().gauges(), "replicas": len(read_ready(self.ready_file))}

    def on_renewal(self) -> None:
        """All replicas are replaced, one order after the other: by the model, the certificates and the number of
        replicas that there are now."""
        super().on_renewal()
        count = self._order["replicas"]
        if self.settings.file is not None:
            try:
                count = getattr(load_settings(self.settings.file), self.role).replicas or count
            except BlindformerError as error:
                self.log.error("settings-kept", what=str(error))
        self._order |= {"number": self._order["number"] + 1, "replicas": count}
        self._send_order()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """As any service; then the replicas finish what they are doing."""
        try:
            async with super().opened():
                yield
        finally:
            assert self._driver.stdin is not None
            self._driver.stdin.close()
            self._driver.wait()  # another signal ends this process: it hears of them as if it did not serve

    def _start(self) -> subprocess.Popen[str]:
        self.ready_file.unlink(missing_ok=True)  # what another driver started ends with it
        words = [sys.executable, "-m", f"{__package__}.driver"]
        self._driver = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=sys.stderr, text=True, cwd="/", start_new_session=True
        )
        self._send_order()
        return self._driver

    def _send_order(self) -> None:
        assert self._driver.stdin is not None
        with suppress(OSError):  # it has ended, which is seen a moment later
            self._driver.stdin.write(json.dumps(self._order) + "\n")
            self._driver.stdin.flush()

    def _choose(self, session: str) -> str:
        """Where the parties of a session meet. Errors: `SlotsBusy` if no replica is ready."""
        ready, noted = read_ready(self.ready_file), self.assigned / session
        if not ready:
            raise SlotsBusy(self.role, RETRY_SECONDS, "no replica is ready")
        if noted.exists() and noted.read_text() not in ready:  # it has ended, and whoever was there has to come again
            noted.unlink(missing_ok=True)
        chosen = min((secrets.choice(list(ready)) for _ in range(2)), key=lambda address: ready[address])
        with suppress(FileExistsError):
            part = self.assigned / f".{secrets.token_hex(8)}"
            part.write_text(chosen)
            try:
                os.link(part, noted)  # whole, and the first one's
            finally:
                part.unlink()
        return noted.read_text()


class ServerFront(Front):
    """Servers of one model."""

    role, command = "server", "serve"
    roles = ("client", "helper")

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        mine, topology = settings.server, settings.session.topology
        programs = programs_with_adapters(mine.folder, "server", mine.adapters)
        self.helpers, self.together = HELPERS[topology], TOGETHER[topology]
        super().__init__(settings, scratch, local)
        self.programs = [program.hash() for program in programs]


class DealerFront(Front):
    """Dealers of any program."""

    role = command = "dealer"
    helpers, together = DealerService.helpers, DealerService.together
    roles = ("client", "helper", "server")


def read_ready(file: Path) -> dict[str, int]:
    """By the address of each replica that is ready: its sessions when the driver counted them last."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return {}


def as_toml(settings: Settings, role: str) -> str:
    """What a replica is started with: these settings, but where it listens."""
    tables = settings.model_dump(mode="json", include={"session", "parties", "certificates", role}, exclude_none=True)
    for name in ("listen", "metrics", "replicas", "log_format"):
        tables[role].pop(name, None)
    lines: list[str] = []
    quoted = partial(json.dumps, ensure_ascii=False)  # as TOML has it, for the names of adapters, too

    def write(name: str, table: dict[str, Any]) -> None:
        plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
        lines.extend([f"[{name}]", *(f"{quoted(key)} = {quoted(value)}" for key, value in plain.items())])
        for key in table.keys() - plain.keys():
            write(f"{name}.{quoted(key)}", table[key])

    for name, table in tables.items():
        write(name, table)
    return "\n".join([*lines, ""])
