"""What is left in a spool and what was used, in SQLite: a correlation is marked as used, durably, before it is used.

`take` reads the key, commits that it is used, overwrites it in its own file (keys.py) and only then returns it. So
neither a crash nor a second process can use it again: at worst it is lost. A crash between the commit and the
overwriting leaves the key of a query that is marked; the next that opens the ledger overwrites it. Each operation opens
the files anew, so that a ledger may be shared by threads, by processes, and across a fork.

KeptStates of a query's correlation:
    ready     both parties have it, as far as this one knows
    used      handed out here, once; its key is gone
    skipped   the other party has it no more, so it can never be used
    broken    its file was missing or damaged when it was taken
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ....protocols.errors import BlindformerError, CorrelationError
from ....versions import PROTOCOL
from .keys import Keys

FORMAT = PROTOCOL  # what is stored is of the masks that one protocol draws: under another it would give wrong answers
LOCK_SECONDS = 30.0  # for another process that writes
_ANOTHER = "give another folder and precompute again, or use what is here with the version that made it"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    session TEXT PRIMARY KEY, program TEXT NOT NULL, weights TEXT NOT NULL, peer TEXT NOT NULL, created REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS queries (
    slot INTEGER PRIMARY KEY, session TEXT NOT NULL REFERENCES sessions, number INTEGER NOT NULL, state TEXT NOT NULL,
    file TEXT, bytes INTEGER NOT NULL, sha256 TEXT, created REAL NOT NULL, used REAL, doubted REAL,
    UNIQUE (session, number)
) STRICT;
CREATE TABLE IF NOT EXISTS audit (
    tag TEXT PRIMARY KEY, session TEXT NOT NULL, number INTEGER NOT NULL, at REAL NOT NULL
) STRICT;
"""


class SpoolError(BlindformerError):
    """Correlations kept on disk cannot be used, or no more can be kept. At most one query's are lost by it.

    `where`: a file or folder, or the party that says so. `what` goes to the peer, too.
    """

    def __init__(self, where: object, what: str) -> None:
        self.where, self.what = where, what
        super().__init__(f"{where}: {what}")


def audit_tag(key: bytes) -> str:
    """Names a query's correlations without telling anything of them: two uses of one key have one tag."""
    return HKDF(algorithm=hashes.SHA256(), length=16, salt=b"blindformer", info=b"audit tag").derive(key).hex()


@dataclass(frozen=True)
class Entry:
    """One query's correlations: this party's key, and at the server the file with the dealer's corrections."""

    session: str
    number: int
    key: bytes
    file: str | None
    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class LedgerRow:
    """Counts of one session's correlations. `bytes`: of those that are ready. `created`: seconds since 1970."""

    session: str
    program: str
    weights: str
    peer: str
    created: float
    ready: int
    used: int
    skipped: int
    broken: int
    bytes: int


class Ledger:
    """One party's ledger in the file `path`. Errors of all methods: `SpoolError`."""

    def __init__(self, path: Path) -> None:
        self.path, self.keys = path, Keys(path.with_name("keys"))
        self._checked = False

    def open_session(self, session: str, program: str, weights: str, peer: str) -> None:
        """`peer`: the fingerprint of the client's certificate, at the server."""
        with self._write() as db:
            try:
                row = (session, program, weights, peer, time.time())
                db.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", row)
            except sqlite3.IntegrityError:
                raise SpoolError(self.path, "this session is in it already; start a new session") from None

    def add(self, entry: Entry) -> None:
        """Ready from now on. Durable when this returns."""
        with self._write() as db:
            slot = db.execute(
                "INSERT INTO queries VALUES (NULL, ?, ?, 'ready', ?, ?, ?, ?, NULL, NULL)",
                (entry.session, entry.number, entry.file, entry.bytes, entry.sha256, time.time()),
            ).lastrowid
            assert slot is not None
            self.keys.write(slot, entry.key)

    def take(self, session: str, number: int) -> Entry | None:
        """Mark one as used and hand it out; None if it is not ready (any more). Errors: `CorrelationError`, too."""
        with self._write() as db:
            query = "SELECT slot, file, bytes, sha256 FROM queries WHERE session = ? AND number = ? AND state = 'ready'"
            row = db.execute(query, (session, number)).fetchone()
            if row is None:
                return None
            slot, *rest = row
            key = self.keys.read(slot)
            fresh = key is not None and self._audit(db, key, session, number)
            change = "UPDATE queries SET state = ?, used = ? WHERE slot = ?"
            db.execute(change, ("used" if fresh else "broken", time.time(), slot))
        if key is None:
            return None
        self._wipe([slot])
        if not fresh:
            raise self._used_before()
        return Entry(session, number, key, *rest)

    def record(self, key: bytes, session: str, number: int) -> None:
        """Note that live correlations are about to be used; of the key only its tag is kept.

        Errors: `CorrelationError` if they were used before.
        """
        with self._write() as db:
            fresh = self._audit(db, key, session, number)
        if not fresh:
            raise self._used_before()

    def _audit(self, db: sqlite3.Connection, key: bytes, session: str, number: int) -> bool:
        """Whether this is the first use of the key; noted if so."""
        note = (audit_tag(key), session, number, time.time())
        return db.execute("INSERT INTO audit VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", note).rowcount == 1

    def _used_before(self) -> CorrelationError:
        return CorrelationError(
            f"{self.path}: says that these correlations were used before; masks are used once: make new ones"
        )

    def mark_broken(self, session: str, number: int) -> None:
        with self._write() as db:
            db.execute("UPDATE queries SET state = 'broken' WHERE session = ? AND number = ?", (session, number))

    def doubt(self, session: str, first: int, end: int | None) -> None:
        """Note that the other party has not what is ready here of the numbers from `first` to `end` (not included;
        None: all). Another process may just be using it, so it is given up no sooner than by `give_up`."""
        where = "session = ? AND state = 'ready' AND doubted IS NULL AND number >= ? AND number < ?"
        with self._write() as db:
            chosen = (time.time(), session, first, 2**62 if end is None else end)
            db.execute(f"UPDATE queries SET doubted = ? WHERE {where}", chosen)

    def give_up(self, seconds: float) -> list[str]:
        """Skip what nobody is going to use, and has not for `seconds`: what the other party has not, and numbers below
        one that was used (they are proposed in order). Returns its files."""
        where = """
            WHERE state = 'ready' AND (doubted <= ?1 OR EXISTS (
                SELECT 1 FROM queries AS later WHERE later.session = queries.session
                AND later.number > queries.number AND later.used <= ?1
            ))"""
        chosen = (time.time() - seconds,)
        with self._write() as db:
            rows = db.execute(f"SELECT slot, file FROM queries {where}", chosen).fetchall()
            db.execute(f"UPDATE queries SET state = 'skipped' {where}", chosen)
        self._wipe([slot for slot, _ in rows])
        return [file for _, file in rows if file is not None]

    def _wipe(self, slots: list[int]) -> None:
        try:
            self.keys.wipe(slots)
        except OSError as error:
            raise SpoolError(self.keys.path, _explain(error)) from None

    def next_ready(self, session: str, at_least: int = 0) -> int | None:
        query = "SELECT MIN(number) FROM queries WHERE session = ? AND state = 'ready' AND number >= ?"
        with self._read() as db:
            return db.execute(query, (session, at_least)).fetchone()[0]

    def sessions(self, program: str, weights: str) -> list[str]:
        """Sessions that hold something ready for a program and its weights, the oldest first."""
        query = """
            SELECT session FROM sessions WHERE program = ? AND weights = ? AND EXISTS (
                SELECT 1 FROM queries WHERE queries.session = sessions.session AND state = 'ready'
            ) ORDER BY created, session"""
        with self._read() as db:
            return [row[0] for row in db.execute(query, (program, weights))]

    def find(self, session: str) -> tuple[str, str, str] | None:
        """(program, weights, peer) of a session."""
        with self._read() as db:
            return db.execute("SELECT program, weights, peer FROM sessions WHERE session = ?", (session,)).fetchone()

    def files(self) -> set[str]:
        """Files of all that is ready."""
        with self._read() as db:
            return {row[0] for row in db.execute("SELECT file FROM queries WHERE state = 'ready' AND file NOT NULL")}

    def ready(self, peer: str | None = None) -> tuple[int, int]:
        """(how many are ready, bytes of their files), of one peer's or all."""
        query = """
            SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM queries JOIN sessions USING (session)
            WHERE state = 'ready' AND (?1 IS NULL OR peer = ?1)"""
        with self._read() as db:
            return db.execute(query, (peer,)).fetchone()

    def rows(self) -> list[LedgerRow]:
        counts = ", ".join(f"SUM(state = '{state}')" for state in ("ready", "used", "skipped", "broken"))
        query = f"""
            SELECT session, program, weights, peer, sessions.created, {counts}, SUM((state = 'ready') * bytes)
            FROM sessions LEFT JOIN queries USING (session) GROUP BY session ORDER BY sessions.created, session"""
        with self._read() as db:
            return [LedgerRow(*row[:5], *(value or 0 for value in row[5:])) for row in db.execute(query)]

    def audit(self) -> list[tuple[str, str, int]]:
        """(tag, session, number) of all correlations used, spooled and live, in order."""
        with self._read() as db:
            return db.execute("SELECT tag, session, number FROM audit ORDER BY at, rowid").fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """One transaction, on the disk when this ends without an error."""
        with self._read() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        try:
            self._create()
            with closing(sqlite3.connect(self.path, timeout=LOCK_SECONDS, isolation_level=None)) as db:
                # A journal that is deleted (the default) may come back after a power cut unless its folder is synced,
                # and undo the last commit: that would be a mask used twice. A truncated one cannot.
                db.execute("PRAGMA journal_mode = TRUNCATE")
                db.execute("PRAGMA synchronous = EXTRA")
                db.execute("PRAGMA foreign_keys = ON")
                if not self._checked:
                    self._prepare(db)
                yield db
        except (sqlite3.Error, OSError) as error:
            raise SpoolError(self.path, _explain(error)) from None

    def _create(self) -> None:
        if not self._checked:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            for path in (self.path, self.keys.path):
                if os.name == "posix" and path.exists() and path.stat().st_mode & 0o077:
                    raise SpoolError(path, f"can be read by others; run: chmod 600 {path}")

    def _prepare(self, db: sqlite3.Connection) -> None:
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise SpoolError(self.path, f"has format {found}, this version reads {FORMAT}; {_ANOTHER}")
        if not found:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {FORMAT}; COMMIT;")
        if self._left_behind(db):
            db.execute("BEGIN IMMEDIATE")  # nobody is adding now
            self.keys.wipe(self._left_behind(db))
            db.execute("COMMIT")
        self._checked = True

    def _left_behind(self, db: sqlite3.Connection) -> set[int]:
        """Keys that a crash has left: of what is not ready."""
        filled = self.keys.filled()
        return filled - {row[0] for row in db.execute("SELECT slot FROM queries WHERE state = 'ready'")}


def _explain(error: sqlite3.Error | OSError) -> str:
    text = str(error)
    if "full" in text or getattr(error, "errno", None) == 28:
        return "the disk is full; free space, then go on: what is in the ledger stays good"
    if "locked" in text:
        return "another process holds it; see what uses this folder"
    if "malformed" in text or "not a database" in text:
        return "is damaged; move the folder away and precompute again (never restore an old copy on both sides)"
    return f"cannot be used ({text}); see whether the folder is there and may be written to"
