"""Who may open a session, whose query computes, who waits, and who is asked to retry later: counting, and no sockets.

    open(child, owner)    a session: admitted, or busy
    want(child)           a query: go, or queued at some place, or busy
    release(child)        the query is over: somebody else may go
    leave(child)          the child is gone, however it went: it gives back all it held

`child` is the id of a connection's process.
`owner` is the fingerprint of the peer's certificate. A worker that is free goes to the owner with the fewest queries
running, of equals to the one whose turn is longest ago: so a client with many sessions does not starve one that has a
single one, and nobody is held back while no other waits.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field

from ...cores import cores
from ..config import ServiceSection

SMOOTH = 0.2  # the weight of the newest duration in the running mean
RETRY_LEAST, RETRY_MOST = 1.0, 60.0  # seconds
FIRST_SESSION = 8.0  # seconds, before one has ended: to ask too early is cheap, to wait for nothing is not


class ServiceLimits(ServiceSection):
    """The settings of a service, and bounds that are no settings. Counts, and times in seconds.

    One certificate has a `share`, as it is one customer: one that opens session after session (a bug is enough, it need
    not be malice) must leave room for the others. `query_seconds` bounds the sum of a query's silences, each of which
    the timeout bounds: else a peer that says its word just in time, a hundred rounds in a row, holds a worker for
    hours.
    """

    workers: int = Field(default_factory=cores)

    pending: int = 128
    """Connections whose peer has not shown yet that it speaks TLS: a socket each."""
    pending_seconds: float = 20.0
    handshakes: int = 12
    """Children in the handshake: 4 MB each, measured; 6 MB when they have a session."""
    handshake_seconds: float = 20.0
    """From the fork to the end of the hello."""
    pressed_seconds: float = 1.0
    """The same to the hello, and from there to a place, while others wait for their turn: strangers who go no further
    give up `handshakes / pressed_seconds` turns a second."""
    probes: int = 2
    """Measurements (`blindformer doctor`) at once, and for so long:"""
    probe_seconds: float = 70.0

    @classmethod
    def of(cls, mine: ServiceSection) -> ServiceLimits:
        given = {name: getattr(mine, name) for name in ServiceSection.model_fields}
        return cls(**{name: value for name, value in given.items() if value is not None})

    @property
    def sessions_each(self) -> int:
        return max(1, math.ceil(self.share * self.sessions))

    @property
    def queue_each(self) -> int:
        return max(1, math.ceil(self.share * self.queue))


@dataclass(frozen=True)
class Go:
    """Admitted; the query may compute."""


@dataclass(frozen=True)
class Queued:
    """`place` others go first, and those that compute now."""

    place: int


@dataclass(frozen=True)
class Busy:
    """Not now. `seconds`: when to ask again, estimated from recent durations."""

    seconds: float
    why: str


Verdict = Go | Queued | Busy
News = list[tuple[int, Go | Queued]]  # what changed for children that wait


class Mean:
    """A running mean of seconds that forgets."""

    def __init__(self, start: float) -> None:
        self.value = start
        self._fresh = True

    def add(self, seconds: float) -> None:
        weight = 1.0 if self._fresh else SMOOTH
        self.value += weight * (seconds - self.value)
        self._fresh = False


class Admission:
    """See the file's head."""

    def __init__(self, limits: ServiceLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._sessions: dict[int, tuple[str, float]] = {}  # owner, since
        self._running: dict[int, float] = {}  # since
        self._queue: dict[int, int | None] = {}  # in order of arrival; the place last told
        self._served: dict[str, int] = {}  # when each owner last got a worker
        self._count = 0
        self._query, self._session = Mean(1.0), Mean(FIRST_SESSION)

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return len(self._queue)

    def is_running(self, child: int) -> bool:
        return child in self._running

    def open(self, child: int, owner: str) -> Go | Busy:
        """A session for `child`. Errors: ValueError if it has one."""
        if child in self._sessions:
            raise ValueError("it has a session already")
        mine = sum(other == owner for other, _ in self._sessions.values())
        if len(self._sessions) >= self.limits.sessions:
            return Busy(self._when(self._session.value / self.limits.sessions), "all sessions are taken")
        if mine >= self.limits.sessions_each:
            seconds = self._when(self._session.value / self.limits.sessions_each)
            return Busy(seconds, "this certificate holds all the sessions that one may")
        self._sessions[child] = (owner, self._clock())
        return Go()

    def _busy(self, child: int) -> Busy | None:
        """Why a query of `child` finds no place."""
        mine = sum(self._owner(other) == self._owner(child) for other in self._queue)
        full = len(self._queue) >= self.limits.queue
        if self._is_free() or (not full and mine < self.limits.queue_each):
            return None
        seconds = self._query.value * (1 + len(self._queue)) / self.limits.workers
        why = "the queue is full" if full else "this certificate has as many queries in the queue as one may"
        return Busy(self._when(seconds), why)

    def want(self, child: int) -> Verdict:
        """A worker for a query of `child`. Errors: ValueError if it has no session, or another query already."""
        if child in self._running or child in self._queue:
            raise ValueError("it has a query already")
        if child not in self._sessions:
            raise ValueError("it has no session")
        if busy := self._busy(child):
            return busy
        if self._is_free():
            self._start(child)
            return Go()
        self._queue[child] = None
        place = self._order().index(child)
        self._queue[child] = place
        return Queued(place)

    def release(self, child: int) -> News:
        """The query of `child` is over, and what that means for those who wait. Errors: ValueError if it has none."""
        since = self._running.pop(child, None)
        if since is None:
            raise ValueError("it has no query")
        self._query.add(self._clock() - since)
        return self._advance()

    def leave(self, child: int) -> News:
        """`child` is gone. Unknown ones are welcome: they held nothing."""
        session = self._sessions.pop(child, None)
        if session is not None:
            self._session.add(self._clock() - session[1])
            if not any(owner == session[0] for owner, _ in self._sessions.values()):
                self._served.pop(session[0], None)
        self._running.pop(child, None)
        self._queue.pop(child, None)
        return self._advance()

    def overdue(self) -> list[int]:
        """Children whose query holds its worker for longer than the limit."""
        end = self._clock() - self.limits.query_seconds
        return [child for child, since in self._running.items() if since <= end]

    def _advance(self) -> News:
        news: News = []
        while self._queue and len(self._running) < self.limits.workers:
            child = self._order()[0]
            del self._queue[child]
            self._start(child)
            news.append((child, Go()))
        for place, child in enumerate(self._order()):
            if self._queue[child] != place:
                self._queue[child] = place
                news.append((child, Queued(place)))
        return news

    def _is_free(self) -> bool:
        """Whether a worker is, and nobody waits for it."""
        return len(self._running) < self.limits.workers and not self._queue

    def _start(self, child: int) -> None:
        self._count += 1
        self._running[child] = self._clock()
        self._served[self._owner(child)] = self._count

    def _order(self) -> list[int]:
        """Those who wait, the next one first.

        By how many of the same owner go before it, then by how long ago its owner had a turn, then by arrival.
        """
        before = Counter(self._owner(child) for child in self._running)
        turns: dict[int, tuple[int, int]] = {}
        for child in self._queue:
            owner = self._owner(child)
            turns[child] = (before[owner], self._served.get(owner, 0))
            before[owner] += 1
        return sorted(turns, key=lambda child: turns[child])

    def _owner(self, child: int) -> str:
        return self._sessions[child][0]

    def _when(self, seconds: float) -> float:
        return round(min(max(seconds, RETRY_LEAST), RETRY_MOST), 1)
