"""Clients' evaluation keys, as they came: on disk, each set bound to a certificate, and gone when nobody uses it."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ....protocols.ckks.facts import CircuitNeeds
from ....protocols.ckks.frames import most
from .refusals import Refusal, busy, gone


@dataclass
class KeySet:
    """`owner`, `serial`: of a certificate. `reserved`: the most that it may take on disk. `users`: jobs that need it
    now."""

    name: str
    owner: str
    facts: CircuitNeeds
    folder: Path
    reserved: int
    used: float
    whole: bool = False
    taking: bool = False
    users: int = field(default=0)
    serial: str = "0"


class KeyStore:
    """Bounded in bytes, in sets, and in sets of one certificate; what was used least lately goes first.

    forgotten   is told the name of every set that goes
    """

    def __init__(
        self,
        folder: Path,
        *,
        most_bytes: int,
        most_sets: int,
        each: int,
        seconds: float,
        forgotten: Callable[[str], None] = lambda name: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.seconds = folder, seconds
        self._most_bytes, self._most_sets, self._each = most_bytes, most_sets, each
        self._forgotten, self._clock = forgotten, clock
        self.sets: dict[str, KeySet] = {}

    @property
    def bytes(self) -> int:
        return sum(item.reserved for item in self.sets.values())

    def reserve(self, owner: str, facts: CircuitNeeds, serial: str = "0") -> KeySet:
        """Room for one more set. Errors: Refusal (503)."""
        self.expire()
        size = most(facts.key_items())
        mine = [item for item in self.sets.values() if item.owner == owner]
        if len(mine) >= self._each:
            self._drop_idle(mine)
        while len(self.sets) >= self._most_sets or self.bytes + size > self._most_bytes:
            self._drop_idle(list(self.sets.values()))
        name = secrets.token_hex(16)
        made = KeySet(name, owner, facts, self.folder / name, size, self._clock(), serial=serial)
        made.folder.mkdir(mode=0o700)
        self.sets[name] = made
        return made

    def find(self, owner: str, name: str, whole: bool = True) -> KeySet:
        """Errors: Refusal (410): one that is not there, or of another certificate, which is all the same to whoever
        asks; (409) for one that is not all there."""
        self.expire()
        found = self.sets.get(name)
        if found is None or found.owner != owner:
            raise gone()
        if whole and not found.whole:
            raise Refusal(409, "these keys have not arrived whole; send them again")
        found.used = self._clock()
        return found

    def drop(self, item: KeySet) -> None:
        if self.sets.pop(item.name, None) is not None:
            shutil.rmtree(item.folder, ignore_errors=True)
            self._forgotten(item.name)

    def expire(self) -> None:
        """Drop what was not used for too long."""
        now = self._clock()
        for item in [item for item in self.sets.values() if not self._busy(item) and now - item.used > self.seconds]:
            self.drop(item)

    def _drop_idle(self, items: list[KeySet]) -> None:
        idle = sorted((item for item in items if not self._busy(item)), key=lambda item: item.used)
        if not idle:
            raise busy("it has no room for more keys", 30)
        self.drop(idle[0])

    def _busy(self, item: KeySet) -> bool:
        return bool(item.users) or item.taking
