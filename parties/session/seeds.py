"""Seeds on their way through the dealer: a client leaves one, its session's server has it used, once."""

from __future__ import annotations

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple, Protocol

from ...protocols.errors import BlindformerError

REMEMBERED = 4096  # sessions that had their seed


class SeedError(BlindformerError):
    """No client's seed is kept for a session."""


class Seeds(Protocol):
    """Brings the seed that a client left to the connection of its session's server: once."""

    def put(self, session: str, program: str, seed: bytes) -> None:
        """Errors: `SeedError` if there was one already."""
        ...

    def take(self, session: str, program: str) -> bytes:
        """The seed, which is forgotten. Errors: `SeedError` if there is none, or it is for another program."""
        ...


class KeptSeed(NamedTuple):
    owner: str
    program: str
    seed: bytes
    end: float


class MemorySeeds:
    """Seeds within one process: at most `limit`, of which one owner has `each`, for `seconds`. A session is never
    seeded twice, used or not. Where room is short, the oldest of whoever has most goes."""

    limit, each, seconds = 256, 64, 600.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._kept: OrderedDict[str, KeptSeed] = OrderedDict()
        self._had: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, session: str, program: str, seed: bytes, owner: str = "") -> None:
        with self._lock:
            self._expire()
            if session in self._had:
                raise SeedError("this session has had its client's seed already; start a new session")
            held = Counter(kept.owner for kept in self._kept.values())
            if held[owner] >= self.each:
                self._drop_oldest(owner)
            elif len(self._kept) >= self.limit:
                self._drop_oldest(held.most_common(1)[0][0])
            self._had[session] = None
            if len(self._had) > REMEMBERED:
                self._had.popitem(last=False)
            self._kept[session] = KeptSeed(owner, program, seed, self._clock() + self.seconds)

    def take(self, session: str, program: str) -> bytes:
        with self._lock:
            self._expire()
            found = self._kept.pop(session, None)
        if found is None or found.program != program:
            raise SeedError("no client of this session has left its seed, or it was used; start a new session")
        return found.seed

    def _drop_oldest(self, owner: str) -> None:
        del self._kept[next(session for session, kept in self._kept.items() if kept.owner == owner)]

    def _expire(self) -> None:
        now = self._clock()
        for session in [session for session, kept in self._kept.items() if kept.end <= now]:
            del self._kept[session]
