"""How many texts one certificate may ask in a period: counted over restarts, by all processes of a server together.

Enough answers give a copy of the model, and a client that deviates from the protocol learns more of the weights from
each (docs/threat-model.md): a limit bounds what one client can learn. Texts are counted before their answer is
computed: what is broken off counts. They are counted by the name in the certificate (its subject), so that a new key
does not start anew. Who is given certificates of several names has several counts: whoever signs them decides.

No more than `each` in any `period`. Counts are kept in slots, a few dozen a period, so room comes back a slot late. A
clock that is set back frees nothing.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ...protocols.errors import BlindformerError
from ..config import ServerSection
from ..session.compute_slots import LimitReached, span

FILE = "queries.sqlite"
SLOTS = 48
LOCK_SECONDS = 30.0
_FORMAT = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS asked (name TEXT NOT NULL, at REAL NOT NULL, texts INTEGER NOT NULL, PRIMARY KEY (name, at));
"""


class QuotaError(BlindformerError):
    """Queries cannot be counted, so none are answered."""


class Quota:
    """`each`: texts of one name in `period` seconds, counted in `folder`. Made before a fork, used after it.

    Errors of all methods: `QuotaError`.
    """

    def __init__(self, folder: Path, each: int, period: float, clock: Callable[[], float] = time.time) -> None:
        self.file, self.each, self.period = folder / FILE, each, period
        self._slot, self._clock = period / SLOTS, clock
        self._lock = threading.Lock()
        self._mine: tuple[int, sqlite3.Connection | None] = (0, None)  # the process that opened it
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.file, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            what = f"cannot be written ({error.strerror})"
            raise QuotaError(f"{self.file}: {what}; give server.state a folder of this service") from None
        with self._open() as db:
            found = db.execute("PRAGMA user_version").fetchone()[0]
            if found not in (0, _FORMAT):
                raise QuotaError(f"{self.file}: has format {found}, this version reads {_FORMAT}; use another folder")
            db.execute("PRAGMA journal_mode = WAL")  # one sync a commit
            db.executescript(f"{_SCHEMA} PRAGMA user_version = {_FORMAT};")
        self.close()

    def check(self, name: str, texts: int) -> None:
        """Errors: LimitReached if so many more are too many now."""
        with self._open() as db:
            self._room(db, name, texts)

    def spend(self, name: str, texts: int) -> None:
        """Count so many more; on the disk when this returns. Errors: LimitReached, and nothing is counted."""
        now = self._clock()
        with self._open() as db, db:  # commits, or rolls back
            db.execute("BEGIN IMMEDIATE")
            self._room(db, name, texts)
            db.execute("DELETE FROM asked WHERE at <= ?", (now - self.period - self._slot,))
            change = "INSERT INTO asked VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET texts = texts + excluded.texts"
            db.execute(change, (name, now // self._slot * self._slot, texts))

    def close(self) -> None:
        """Opened again when it is needed."""
        pid, db = self._mine
        if db is not None and pid == os.getpid():
            db.close()
        self._mine = (0, None)

    def _room(self, db: sqlite3.Connection, name: str, texts: int) -> None:
        now = self._clock()
        query = "SELECT at, texts FROM asked WHERE name = ? AND at > ? ORDER BY at"
        rows = db.execute(query, (name, now - self.period - self._slot)).fetchall()
        over = sum(count for _, count in rows) + texts - self.each
        for at, count in rows:
            if over <= 0:
                return
            over, free = over - count, at + self._slot + self.period
            if over <= 0:
                raise LimitReached("server", self.each, self.period, max(1.0, free - now))
        if over > 0:
            raise QuotaError(f"server.queries_each = {self.each}: one request carries {texts} texts; raise it")

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._lock:
                pid, db = self._mine
                if db is None or pid != os.getpid():  # SQLite's connections do not outlive a fork
                    db = sqlite3.connect(self.file, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
                    db.execute("PRAGMA synchronous = FULL")
                    self._mine = (os.getpid(), db)
                yield db
        except sqlite3.Error as error:
            fix = "see whether the disk is full or the file damaged; without it all counts start anew"
            raise QuotaError(f"{self.file}: cannot be used ({error}); {fix}") from None


def quota_of(mine: ServerSection, texts: int) -> Quota | None:
    """The limit of a server whose requests carry `texts`; None if there is none. Errors: `QuotaError`."""
    if mine.queries_each is None:
        return None
    if mine.state is None:
        what = "server.queries_each: is counted over restarts, and no folder for that is given"
        raise QuotaError(f"{what}; set server.state, or say --state")
    made = Quota(mine.state, mine.queries_each, mine.queries_period)
    if texts > made.each:
        raise QuotaError(f"server.queries_each = {made.each}: one request carries {texts} texts; raise it")
    return made


def quota_in_words(quota: Quota | None) -> str:
    """For the start of a service."""
    if quota is None:
        return "none: a certificate may ask as much as it likes (--queries-each)"
    return f"{quota.each} texts in {span(quota.period)} for each certificate's name, counted in {quota.file}"
