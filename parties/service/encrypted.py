"""The server of encrypted queries as a service: a child for each session, and clients' keys in its scratch folder.

The server computes on ciphertexts, and learns sizes and times. Weights and encoded weights are the supervisor's, whose
children share them; it reads nothing that a client sends.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ...models.artifacts import ArtifactError, load_server
from ...models.encrypted import circuit_in, evaluator_of
from ...models.loading.media import word_of_kind
from ...protocols.ckks.facts import CircuitNeeds, facts_from, most
from ...protocols.ckks.isolated import Say
from ...protocols.devices import DeviceError
from ..config import Settings
from ..launch import LocalOptions
from ..session.encrypted_queries import PROTOCOL, CiphertextServer
from ..session.messages import SlotsBusy
from ..transport.handshake import Hello, make_hello
from ..transport.tls import TlsChannel
from .child import Control
from .control import ChildReport, Introduced, StoredKeys
from .quota import quota_in_words, quota_of
from .service import Service
from .two_party import RESERVE_SECONDS


@dataclass
class KeySet:
    """`owner`, `serial`: of a certificate. `reserved`: the most that it may take on disk. `taking`: the child that
    receives it, until it is whole. `users`: children that computed with it."""

    name: str
    owner: str
    serial: str
    facts: CircuitNeeds
    folder: Path
    reserved: int
    used: float
    taking: int | None
    users: set[int] = field(default_factory=set)


class KeyStore:
    """Clients' evaluation keys on the disk: bounded in bytes, in sets, and in sets of one certificate.

    What was used least lately makes room; what nobody uses expires; what a revoked certificate sent is deleted. A set
    is of one certificate and one circuit: to anybody else it is not there.

    `running`: whether a query of this child computes. `forgotten`: is told every name that goes."""

    def __init__(
        self,
        folder: Path,
        *,
        most_bytes: int,
        most_sets: int,
        each: int,
        seconds: float,
        running: Callable[[int], bool],
        forgotten: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.seconds = folder, seconds
        self._most_bytes, self._most_sets, self._each = most_bytes, most_sets, each
        self._running, self._forgotten, self._clock = running, forgotten, clock
        self.sets: dict[str, KeySet] = {}

    @property
    def bytes(self) -> int:
        return sum(item.reserved for item in self.sets.values())

    def reserve(self, child: int, owner: str, serial: str, facts: CircuitNeeds) -> KeySet:
        """Room for one more set, which `child` receives. Errors: SlotsBusy."""
        self.expire()
        size = most(facts.key_items())
        mine = [item for item in self.sets.values() if item.owner == owner]
        if len(mine) >= self._each:
            self._drop_idle(mine)
        while len(self.sets) >= self._most_sets or self.bytes + size > self._most_bytes:
            self._drop_idle(list(self.sets.values()))
        name = secrets.token_hex(16)
        item = KeySet(name, owner, serial, facts, self.folder / name, size, self._clock(), child)
        self.sets[name] = item
        return item

    def find(self, owner: str, facts: CircuitNeeds, name: str) -> KeySet | None:
        """A whole set. To ask counts as use."""
        self.expire()
        item = self.sets.get(name)
        if item is None or item.owner != owner or item.facts != facts or item.taking is not None:
            return None
        item.used = self._clock()
        return item

    def drop(self, item: KeySet) -> None:
        if self.sets.pop(item.name, None) is not None:
            shutil.rmtree(item.folder, ignore_errors=True)
            self._forgotten(item.name)

    def expire(self) -> None:
        """Drop what was not used for too long."""
        now = self._clock()
        for item in [item for item in self.sets.values() if not self._busy(item) and now - item.used > self.seconds]:
            self.drop(item)

    def left(self, child: int) -> None:
        """A child is gone, and with it what it has not received whole."""
        for item in list(self.sets.values()):
            item.users.discard(child)
            if item.taking == child:
                self.drop(item)

    def _drop_idle(self, items: list[KeySet]) -> None:
        idle = sorted((item for item in items if not self._busy(item)), key=lambda item: item.used)
        if not idle:
            raise SlotsBusy("server", 30, "it has no room for more keys")
        self.drop(idle[0])

    def _busy(self, item: KeySet) -> bool:
        return item.taking is not None or any(map(self._running, item.users))


GB = 1e9


class EncryptedService(Service):
    """One server with its circuits, one for each length."""

    role = "server"
    helpers = "nobody: the client encrypts, and this server computes on ciphertexts"
    adversary = "a server that follows the protocol; it learns only sizes and times"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        if settings.server.device != "cpu":
            raise DeviceError("server.device: encrypted queries are answered on processors; leave it out")
        super().__init__(settings, scratch, local)
        mine, part = settings.server, load_server(settings.server.folder)
        room = int(mine.weights_memory_gb * GB) // len(part)
        self.circuits: dict[str, CircuitNeeds] = {}
        self.computing: dict[str, Callable[[Path], Callable[[bytes, Say], bytes]]] = {}
        for one in part.values():
            if one.circuit is None:
                raise ArtifactError(f"{part.folder}: is not compiled for encrypted queries; compile with --plan he")
            facts = facts_from(one.circuit.facts.to_json(), secure=not local.any_ring)
            circuit = circuit_in(one, facts)
            evaluator = evaluator_of(circuit, facts.parameters, keep=room, workers=mine.query_processes)
            evaluator.prepare()
            from ...protocols.ckks.computing import Computing  # it needs SEAL, which is here

            self.circuits[facts.hash()] = facts
            self.computing[facts.hash()] = partial(Computing, facts, evaluator)
        self.hellos = {hash: make_hello(self.role, PROTOCOL, hash, config=self.config) for hash in self.circuits}
        each = self.circuits.values()
        largest = max(facts.key_memory() for facts in each)
        self.limits = self.limits.model_copy(update={"memory_gb": self.limits.memory_gb + largest / GB})
        word = word_of_kind(part.model.get("kind", ""))
        lengths = ", ".join(f"N = {facts.parameters.degree} for {facts.texts} {word}s" for facts in each)
        self.about = f"{part.model.get('name', 'model')}, plan {part.plan.name}, {lengths}"
        self.quota = quota_of(mine, max(facts.texts for facts in each))
        self.limit = quota_in_words(self.quota)
        self._resident: dict[int, int] = {}  # bytes of keys that children keep in memory between queries
        self._most_resident = int(mine.keys_memory_gb * GB) * self.limits.workers
        self.key_store = KeyStore(
            scratch,
            most_bytes=int(mine.keys_gb * GB),
            most_sets=self.limits.sessions,
            each=self.limits.sessions_each,
            seconds=mine.keys_seconds,
            running=lambda child: self.processes.is_running(child),  # noqa: PLW0108  # they are there once it runs
            forgotten=lambda name: self.log.info("keys-gone", session=name),
        )

    # -- in a child

    def party(self, channel: TlsChannel, hello: Hello, control: Control) -> CiphertextServer:
        return CiphertextServer(
            self.circuits[hello.program],
            self.computing[hello.program],
            channel,
            AskedKeys(control, self.scratch),
            control,
            alone=control.alone,
            seconds=self.limits.query_seconds - min(RESERVE_SECONDS, self.limits.query_seconds / 10),
            hung_up=channel.fileno(),
            count=self.counting(channel, control),
        )

    # -- in the supervisor

    def reply(self, report: ChildReport, peer: Introduced, child: int) -> Mapping[str, Any]:
        if not isinstance(report, StoredKeys):
            raise ValueError("a report that has no place here")
        facts = self.circuits[peer.program]
        if report.do == "reserve":
            try:
                return {"name": self.key_store.reserve(child, peer.owner, peer.serial, facts).name}
            except SlotsBusy as busy:
                return {"busy": {"seconds": busy.retry_after, "why": busy.why}}
        if report.do == "whole":
            return self._received(report.name, peer, child)
        item = self.key_store.find(peer.owner, facts, report.name)
        if item is None:
            return {"gone": True}
        if report.do == "drop":
            self.key_store.drop(item)
        elif report.do == "use":
            item.users.add(child)
            return {"stay": self._may_stay(child, facts)}
        return {"good": True}

    def _received(self, name: str, peer: Introduced, child: int) -> Mapping[str, Any]:
        item: KeySet | None = self.key_store.sets.get(name)
        if item is None or item.taking != child:
            raise ValueError("keys that it was not to receive")
        item.taking = None
        size = sum(file.stat().st_size for file in item.folder.iterdir())
        self.log.info("keys-received", session=name, owner=peer.owner, bytes=size)
        return {"good": True}

    def _may_stay(self, child: int, facts: CircuitNeeds) -> bool:
        size = facts.key_memory()
        if child not in self._resident and sum(self._resident.values()) + size > self._most_resident:
            return False
        self._resident[child] = size
        return True

    def left_by(self, child: int) -> None:
        self._resident.pop(child, None)
        self.key_store.left(child)

    def on_turn(self) -> None:
        self.key_store.expire()

    def on_renewal(self) -> None:
        """Clients' keys stay, but not those of who was revoked."""
        super().on_renewal()
        for item in [item for item in self.key_store.sets.values() if self.identity.revoked(item.serial)]:
            self.key_store.drop(item)

    def gauges(self) -> Mapping[str, float]:
        return {**super().gauges(), "key_bytes": self.key_store.bytes}


class AskedKeys:
    """In a child: `ClientKeyFiles`, kept by the supervisor in `folder`."""

    def __init__(self, control: Control, folder: Path) -> None:
        self._control, self._folder = control, folder

    def reserve(self) -> tuple[str, Path]:
        answer = self._ask("reserve")
        if "busy" in answer:
            raise SlotsBusy("server", float(answer["busy"]["seconds"]), str(answer["busy"]["why"]))
        return answer["name"], self._folder / answer["name"]

    def whole(self, name: str) -> None:
        self._ask("whole", name)

    def find(self, name: str) -> bool:
        return "good" in self._ask("find", name)

    def use(self, name: str) -> tuple[Path, bool] | None:
        answer = self._ask("use", name)
        return None if "gone" in answer else (self._folder / name, bool(answer["stay"]))

    def drop(self, name: str) -> None:
        self._ask("drop", name)

    def _ask(self, do: Any, name: str = "") -> dict[str, Any]:
        return self._control.ask(StoredKeys(do=do, name=name))
