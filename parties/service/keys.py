"""Clients' evaluation keys on a server's disk: bounded in bytes, in sets, and in sets of one certificate.

What was used least lately makes room; what nobody uses expires; what a revoked certificate sent is deleted. A set is of
one certificate and one circuit: to anybody else it is not there.
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ...protocols.ckks.facts import CircuitNeeds, most
from ..session.compute_slots import SlotsBusy


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
    """In a supervisor. `running`: whether a query of this child computes. `forgotten`: is told every name that goes."""

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
