"""Which preprocessed correlations are ready, and which were used: each is marked, durably, before it is used.

The ledger is in SQLite or Postgres. The keys are in a file of their own (`Keys`), 32 bytes for each row of the ledger:
a database would leave copies of a key in its journal, in moved pages, in truncated blocks. A key is written once and
overwritten in its place, and both are on the disk when the call returns.

`take` reads a key, commits that it is used, overwrites it in its file and only then returns it. So neither a crash nor
a second process can use a key again: at worst a key is lost. A crash between the commit and the overwriting leaves the
key of a query that is marked as used; the next process that opens the ledger overwrites it. Replicas of a server share
a ledger in Postgres and the folder with keys and files: the server that commits first has the key, and no other.

States of a query's correlations:
    ready     both parties have them, as far as this one knows
    used      handed out here, once; their key is gone
    skipped   the other party no longer has them, so they can never be used
    broken    their file was missing or damaged when they were taken
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from uuid import getnode

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Double,
    ForeignKey,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    and_,
    case,
    cast,
    delete,
    exists,
    func,
    or_,
    select,
    update,
)

from ...files import sync, whole_file
from ...protocols.errors import BlindformerError, CorrelationError
from ...protocols.seeds import SEED_BYTES
from ...versions import PROTOCOL
from ..database import Database

_NONE = bytes(SEED_BYTES)


class Keys:
    """The file at `path`, made with the first key. `slot`: a row's number, from 1. Errors of all methods: OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, slot: int, key: bytes) -> None:
        assert len(key) == SEED_BYTES
        new = not self.path.exists()
        with self._open(os.O_CREAT | os.O_RDWR) as file:
            os.pwrite(file, key, _at(slot))
            os.fsync(file)
        if new:
            sync(self.path.parent)

    def read(self, slot: int) -> bytes | None:
        """None if the slot holds no key (any more)."""
        if not self.path.exists():
            return None
        with self._open(os.O_RDONLY) as file:
            key = os.pread(file, SEED_BYTES, _at(slot))
        return key if len(key) == SEED_BYTES and key != _NONE else None

    def wipe(self, slots: Collection[int]) -> None:
        if not slots or not self.path.exists():
            return
        with self._open(os.O_RDWR) as file:
            for slot in slots:
                os.pwrite(file, _NONE, _at(slot))
            os.fsync(file)

    def filled(self) -> set[int]:
        """The slots that hold a key."""
        content = self.path.read_bytes() if self.path.exists() else b""
        starts = range(0, len(content), SEED_BYTES)
        return {1 + at // SEED_BYTES for at in starts if content[at : at + SEED_BYTES].strip(b"\0")}

    @contextmanager
    def _open(self, flags: int) -> Iterator[int]:
        file = os.open(self.path, flags, 0o600)
        try:
            yield file
        finally:
            os.close(file)


def _at(slot: int) -> int:
    return SEED_BYTES * (slot - 1)


KEYS = "keys"
SHARED = "shared"  # in a folder whose ledger is in a database: which folder it is
PLACE = "place"  # in the folder of a bound ledger: a file that is never written again
_MACHINE = Path("/etc/machine-id")
NOTED, SWEPT = 100_000, "00"  # last uses noted; a tag that begins so (one in 256) removes the older ones
FORMAT = PROTOCOL  # the stored correlations are for one protocol's masks: another's would give wrong answers

_TABLES = MetaData()
_SESSIONS = Table(
    "sessions",
    _TABLES,
    Column("session", Text, primary_key=True),
    *(Column(name, Text, nullable=False) for name in ("program", "weights", "peer")),
    Column("created", Double, nullable=False),
)
_QUERIES = Table(
    "queries",
    _TABLES,
    Column("slot", Integer, primary_key=True),
    Column("session", Text, ForeignKey(_SESSIONS.c.session), nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("state", Text, nullable=False),
    Column("file", Text),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text),
    Column("created", Double, nullable=False),
    *(Column(name, Double) for name in ("used", "doubted")),
    UniqueConstraint("session", "number"),
)
_AUDIT = Table(
    "audit",
    _TABLES,
    Column("tag", Text, primary_key=True),
    Column("session", Text, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("at", Double, nullable=False),
)
_FOLDER = Table("folder", _TABLES, Column("id", Text, primary_key=True))  # of a ledger that is shared, or bound
_STATES = ("ready", "used", "skipped", "broken")
_READY = _QUERIES.c.state == "ready"


class StoreError(BlindformerError):
    """Correlations on disk cannot be used, or no more can be added. At most one query's correlations are lost.

    `where`: a file or folder, or the party that reports it. `what` goes to the peer, too.
    """

    def __init__(self, where: object, what: str) -> None:
        self.where, self.what = where, what
        super().__init__(f"{where}: {what}")


def audit_tag(key: bytes) -> str:
    """A name for a query's correlations that reveals nothing of them: two uses of one key have one tag."""
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
    """One party's ledger. Errors of all methods: `StoreError`.

    path    its file; the keys lie beside it
    shared  instead of the file, a Postgres database (URL) for several servers, which share that folder, too
    bound   what is in it is good in this folder of this machine alone: in a copy of it, all is discarded. For a party
            whose peer may lie about what is in its own ledger.
    """

    def __init__(self, path: Path, shared: str | None = None, bound: bool = False) -> None:
        self.path, self.keys, self.bound = path, Keys(path.with_name(KEYS)), bound
        self.database = Database(shared or path, _TABLES, "ledger", FORMAT, self._fails, self._prepare)

    def _fails(self, what: str) -> StoreError:
        return StoreError(self.database.name, what)

    def open_session(self, session: str, program: str, weights: str, peer: str) -> None:
        """`peer`: the fingerprint of the client's certificate, at the server."""
        row = {"session": session, "program": program, "weights": weights, "peer": peer, "created": time.time()}
        with self.database.write() as db:
            new = self.database.insert(_SESSIONS).values(row).on_conflict_do_nothing()
            if db.execute(new.returning(_SESSIONS.c.session)).one_or_none() is None:
                raise self._fails("this session is in it already; start a new session")

    def add(self, entry: Entry) -> None:
        """Add one query's correlations, ready from now on. Durable when this returns."""
        row = {
            "session": entry.session,
            "number": entry.number,
            "state": "ready",
            "file": entry.file,
            "bytes": entry.bytes,
            "sha256": entry.sha256,
            "created": time.time(),
        }
        with self.database.write() as db:
            slot = db.execute(_QUERIES.insert().values(row).returning(_QUERIES.c.slot)).scalar_one()
            self.keys.write(slot, entry.key)

    def take(self, session: str, number: int) -> Entry | None:
        """Mark one query's correlations as used and hand them out: no process gets them again, whatever happens. None
        if they are not ready (any more). Errors: `CorrelationError`, too."""
        query = select(_QUERIES.c.slot, _QUERIES.c.file, _QUERIES.c.bytes, _QUERIES.c.sha256).where(
            _QUERIES.c.session == session, _QUERIES.c.number == number, _READY
        )
        with self.database.write() as db:
            self._discard_if_copied(db)
            row = db.execute(query.with_for_update()).one_or_none()
            if row is None:
                return None
            slot, *rest = row
            key = self.keys.read(slot)
            fresh = key is not None and self._audit(db, key, session, number)
            state = {"state": "used" if fresh else "broken", "used": time.time()}
            db.execute(update(_QUERIES).where(_QUERIES.c.slot == slot).values(state))
        if key is None:
            return None
        self._wipe([slot])
        if not fresh:
            raise self._used_before()
        return Entry(session, number, key, *rest)

    def record(self, key: bytes, session: str, number: int) -> None:
        """Note that live correlations are about to be used; only the tag of their key is kept.

        Errors: `CorrelationError` if they were used before.
        """
        with self.database.write() as db:
            fresh = self._audit(db, key, session, number)
        if not fresh:
            raise self._used_before()

    def _audit(self, db: Connection, key: bytes, session: str, number: int) -> bool:
        """Note a use of the key; False if it is among the last `NOTED` uses. A key comes twice by a bug, or from a copy
        of a store, soon after; for a number of the store, its row says for good whether it was used."""
        note = {"tag": audit_tag(key), "session": session, "number": number, "at": time.time()}
        if note["tag"].startswith(SWEPT):
            last = select(_AUDIT.c.at).order_by(_AUDIT.c.at.desc()).offset(NOTED).limit(1).scalar_subquery()
            db.execute(delete(_AUDIT).where(_AUDIT.c.at <= last))
        new = self.database.insert(_AUDIT).values(note).on_conflict_do_nothing()
        return db.execute(new.returning(_AUDIT.c.tag)).one_or_none() is not None

    def _used_before(self) -> CorrelationError:
        return CorrelationError(
            f"{self.database.name}: says that these correlations were used before; masks are used once: make new ones"
        )

    def mark_broken(self, session: str, number: int) -> None:
        chosen = (_QUERIES.c.session == session, _QUERIES.c.number == number)
        with self.database.write() as db:
            db.execute(update(_QUERIES).where(*chosen).values(state="broken"))

    def doubt(self, session: str, first: int, end: int | None) -> None:
        """Note that the other party lacks the numbers from `first` to `end` (not included; None: all) that are ready
        here. Another process may be using them just now, so only `give_up` skips them, later. A bound ledger marks a
        number before it is proposed: it skips them now, with the first one, whose mask nobody was sent."""
        chosen = [_QUERIES.c.session == session, _QUERIES.c.doubted.is_(None), _QUERIES.c.number >= first]
        if end is not None:
            chosen.append(_QUERIES.c.number < end)
        unused = or_(_READY, _QUERIES.c.number == first) if self.bound else _READY
        change = {"state": "skipped"} if self.bound else {"doubted": time.time()}
        with self.database.write() as db:
            marked = update(_QUERIES).where(*chosen, unused).values(change).returning(_QUERIES.c.slot)
            slots = list(db.execute(marked).scalars())
        if self.bound:
            self._wipe(slots)

    def give_up(self, seconds: float, oldest: float = 0.0) -> list[str]:
        """Skip numbers that have been useless for `seconds`: those that the other party lacks, and those below one that
        was used (numbers are proposed in order); and those made before `oldest` (seconds since 1970), whose other party
        may have lost its part. Returns their files."""
        before, later = time.time() - seconds, _QUERIES.alias("later")
        same = and_(later.c.session == _QUERIES.c.session, later.c.number > _QUERIES.c.number, later.c.used <= before)
        passed = or_(_QUERIES.c.doubted <= before, exists().where(same), _QUERIES.c.created < oldest)
        skip = update(_QUERIES).where(_READY, passed).values(state="skipped")
        with self.database.write() as db:
            rows = db.execute(skip.returning(_QUERIES.c.slot, _QUERIES.c.file)).all()
        self._wipe([slot for slot, _ in rows])
        return [file for _, file in rows if file is not None]

    def _wipe(self, slots: list[int]) -> None:
        try:
            self.keys.wipe(slots)
        except OSError as error:
            what = f"cannot be written ({error.strerror}); see whether the folder is there and may be written to"
            raise StoreError(self.keys.path, what) from None

    def next_ready(self, session: str, at_least: int = 0) -> int | None:
        chosen = (_QUERIES.c.session == session, _READY, _QUERIES.c.number >= at_least)
        with self.database.read() as db:
            return db.execute(select(func.min(_QUERIES.c.number)).where(*chosen)).scalar()

    def sessions(self, program: str, weights: str) -> list[str]:
        """Sessions that hold something ready for a program and its weights, the oldest first."""
        left = exists().where(_QUERIES.c.session == _SESSIONS.c.session, _READY)
        chosen = (_SESSIONS.c.program == program, _SESSIONS.c.weights == weights, left)
        query = select(_SESSIONS.c.session).where(*chosen).order_by(_SESSIONS.c.created, _SESSIONS.c.session)
        with self.database.read() as db:
            return list(db.execute(query).scalars())

    def find(self, session: str) -> tuple[str, str, str] | None:
        """(program, weights, peer) of a session."""
        query = select(_SESSIONS.c.program, _SESSIONS.c.weights, _SESSIONS.c.peer)
        with self.database.read() as db:
            row = db.execute(query.where(_SESSIONS.c.session == session)).one_or_none()
        return None if row is None else (row[0], row[1], row[2])

    def files(self) -> set[str]:
        """The files of all ready numbers."""
        with self.database.read() as db:
            return set(db.execute(select(_QUERIES.c.file).where(_READY, _QUERIES.c.file.is_not(None))).scalars())

    def ready(self, peer: str | None = None) -> tuple[int, int]:
        """(count, bytes of the files) of ready numbers, of one peer or all."""
        query = select(func.count(), _sum(_QUERIES.c.bytes)).select_from(_QUERIES).join(_SESSIONS).where(_READY)
        if peer is not None:
            query = query.where(_SESSIONS.c.peer == peer)
        with self.database.read() as db:
            count, size = db.execute(query).one()
            return count, size

    def rows(self) -> list[LedgerRow]:
        counts = [_sum(case((_QUERIES.c.state == state, 1), else_=0)) for state in _STATES]
        size, order = _sum(case((_READY, _QUERIES.c.bytes), else_=0)), (_SESSIONS.c.created, _SESSIONS.c.session)
        names = [field.name for field in fields(LedgerRow)]
        query = select(*_SESSIONS.c, *counts, size).join(_QUERIES, isouter=True).group_by(*_SESSIONS.c).order_by(*order)
        with self.database.read() as db:
            return [LedgerRow(**dict(zip(names, row, strict=True))) for row in db.execute(query)]

    def audit(self) -> list[tuple[str, str, int]]:
        """(tag, session, number) of used correlations, stored and live, in order: at least the last `NOTED`."""
        query = select(_AUDIT.c.tag, _AUDIT.c.session, _AUDIT.c.number).order_by(_AUDIT.c.at)
        with self.database.read() as db:
            return [(tag, session, number) for tag, session, number in db.execute(query)]

    def _prepare(self, db: Connection) -> None:
        """Check that ledger and folder belong together; wipe keys that a crash has left. No process is adding now."""
        self._check_folder(db)
        self._discard_if_copied(db)
        if self.keys.path.exists():
            if os.name == "posix" and self.keys.path.stat().st_mode & 0o077:
                raise StoreError(self.keys.path, f"can be read by others; run: chmod 600 {self.keys.path}")
            ready = set(db.execute(select(_QUERIES.c.slot).where(_READY)).scalars())
            self.keys.wipe(self.keys.filled() - ready)

    def _discard_if_copied(self, db: Connection) -> None:
        if not self.bound:
            return
        here, noted = self._place(), db.execute(select(_FOLDER.c.id)).scalar()
        if noted is None:
            db.execute(_FOLDER.insert().values(id=here))
        elif noted != here:
            skip = update(_QUERIES).where(_READY).values(state="skipped")
            self._wipe(list(db.execute(skip.returning(_QUERIES.c.slot)).scalars()))
            db.execute(update(_FOLDER).values(id=here))

    def _place(self) -> str:
        """This machine, and these files of it. A copy has other ones, or a time of change (ctime) that nobody sets."""
        mark = self.path.with_name(PLACE)
        with suppress(FileExistsError), whole_file(mark, durable=True, new=True) as stream:
            stream.write(b"Masks are good beside this file, and in no copy of this folder.\n")
        machine = _MACHINE.read_text().strip() if _MACHINE.exists() else ""
        placed = mark.stat()
        return f"{machine or getnode()} {placed.st_ino} {placed.st_ctime_ns} {self.path.stat().st_ino}"

    def _check_folder(self, db: Connection) -> None:
        """Two ledgers of one folder would each hand out its keys; one ledger of two folders lacks keys in either."""
        mark = self.path.with_name(SHARED)
        if self.database.file:
            if mark.exists():
                raise StoreError(mark.parent, "has its ledger in a database; give that, too (server.database)")
            return
        if self.path.exists():
            raise StoreError(mark.parent, "has a ledger of its own; give servers that share one a new, empty folder")
        mark.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError), whole_file(mark, durable=True, new=True) as stream:
            stream.write(secrets.token_hex(16).encode())
        mine, noted = mark.read_text(), db.execute(select(_FOLDER.c.id)).scalar()
        if noted is None:
            db.execute(_FOLDER.insert().values(id=mine))
        elif noted != mine:
            what = f"is the ledger of another folder than {mark.parent}; mount that one at every server (server.store)"
            raise self._fails(what)


def _sum(values: ColumnElement[int]) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(values), 0), BigInteger)
