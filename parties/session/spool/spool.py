"""One party's spool: its ledger, the server's files of corrections, and which correlations both parties have.

A file of corrections is whole and on the disk before it has its name, and removed as soon as it is opened.

The client proposes the least number that it has; the server takes it, or names its own least number:

    client -> server   session and number
    server -> client   taken: marked as used at the server; now the client marks it
                    or missing: the server's least ready number from there on, which the client proposes next

If the client dies between the two marks, the number is lost to both, for the server never takes it twice. A client
whose folder is older than it should be proposes numbers that are used at the server; a server whose folder is older
never gets proposals of numbers that are used at the client. So one current ledger is enough.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from ....files import sync, whole_file
from .ledger import SHARED, Entry, Ledger, LedgerRow, SpoolError

_NAMES = re.compile(r"[0-9a-f]{32}/[0-9]+(\.[0-9a-f]{16}\.part)?")  # of what is written here, and of its parts
SPARE_BYTES = 64 * 2**20  # of the disk, left for other programs


class Store:
    """The files of one spool, named `<session>/<number>` under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, frames: Iterable[bytes | bytearray | memoryview]) -> tuple[int, str]:
        """Write one file; returns (bytes, SHA-256 as hex). Nothing is left of it after an error.

        Errors: `SpoolError` when the disk does not take it; those of `frames`.
        """
        path, size, digest = self.folder / name, 0, hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with whole_file(path, durable=True) as stream:
                for frame in frames:
                    stream.write(frame)
                    digest.update(frame)
                    size += len(frame)
            sync(self.folder)
        except OSError as error:
            path.unlink(missing_ok=True)
            what = f"cannot be written ({error.strerror}); free space, or use another folder"
            raise SpoolError(path, what) from None
        return size, digest.hexdigest()

    def open_once(self, name: str, size: int, sha256: str) -> mmap.mmap | bytes:
        """The content of a file, which is removed: nobody opens it again.

        Errors: `SpoolError` if it is missing or not what was written.
        """
        path = self.folder / name
        remedy = "these correlations are spent, no others: ask again"
        try:
            with path.open("rb") as stream:
                path.unlink()
                written = os.fstat(stream.fileno()).st_size
                content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if written else b""
        except OSError as error:
            raise SpoolError(path, f"cannot be read ({error.strerror}); {remedy}") from None
        if written != size or hashlib.sha256(content).hexdigest() != sha256:
            raise SpoolError(path, f"is damaged; {remedy}")
        return content

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)

    def room(self, size: int) -> None:
        """Errors: `SpoolError` if the disk has no room for `size` more bytes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise SpoolError(self.folder, f"cannot be used ({error.strerror}); give another folder") from None
        if free < size + SPARE_BYTES:
            free_mb, size_mb = f"{free / 1e6:.0f} MB", f"{size / 1e6:.0f} MB"
            raise SpoolError(self.folder, f"the disk has {free_mb} left, one query takes {size_mb}; free space")

    def strays(self, known: set[str], seconds: float) -> list[str]:
        """Files of a spool that no ledger names, last written `seconds` ago or more: a crash left them."""
        before = time.time() - seconds
        names = []
        for path in self.folder.glob("*/*"):
            name = path.relative_to(self.folder).as_posix()
            with suppress(OSError):
                if name in known or not _NAMES.fullmatch(name):
                    continue
                if path.is_file() and path.stat().st_mtime <= before:
                    names.append(name)
        return names


LEDGER = "ledger.sqlite"
GRACE_SECONDS = 3600.0  # for a conversation that is under way, before what it passed over is removed


@dataclass(frozen=True)
class SpoolEntry:
    """One query's correlations, handed out for good. `corrections`: the dealer's frames in a row, at the server."""

    key: bytes
    corrections: mmap.mmap | bytes


class Spool:
    """Preprocessed correlations, in `folder`. It may be shared by threads, by processes, and across a fork.

    limit_bytes   the most that its files may take together, of which one client may fill `share`
    database      where replicas share the folder: the Postgres database (URL) with their ledger
    must_exist    open an existing spool only

    Errors of all methods: `SpoolError`.
    """

    def __init__(
        self,
        folder: Path | str,
        limit_bytes: int | None = None,
        share: float = 1.0,
        *,
        database: str | None = None,
        must_exist: bool = False,
    ) -> None:
        self.folder, self.limit_bytes, self.share = Path(folder), limit_bytes, share
        if must_exist and not (self.folder / (SHARED if database else LEDGER)).is_file():
            raise SpoolError(self.folder, "holds no preprocessed correlations; `blindformer precompute` makes them")
        self.ledger = Ledger(self.folder / LEDGER, database)
        self.store = Store(self.folder)

    def begin(self, session: str, program: str, weights: str, peer: str = "") -> None:
        """Start adding a session's correlations, bound to a program, its weights and (at the server) a client."""
        self.sweep()
        if self.ledger.find(session) is None:
            self.ledger.open_session(session, program, weights, peer)

    def room(self, size: int, peer: str = "") -> None:
        """Errors: `SpoolError` if there is no room for one more query of `size` bytes with the client `peer`."""
        if self.limit_bytes is not None:
            for whose, limit in ((None, self.limit_bytes), (peer, int(self.share * self.limit_bytes))):
                if self.ledger.ready(whose)[1] + size > limit:
                    who = "" if whose is None else " for one client"
                    what = f"would hold more than {limit / 1e6:.0f} MB{who}; use what is there, or raise the limit"
                    raise SpoolError(self.folder, what)
        self.store.room(size)

    def add(self, session: str, number: int, key: bytes, frames: Iterable[bytes | bytearray] | None = None) -> None:
        """Add one query's correlations: this party's key, and the dealer's frames. On the disk when this returns."""
        if frames is None:
            self.ledger.add(Entry(session, number, key, None, 0, None))
            return
        name = f"{session}/{number}"
        size, digest = self.store.write(name, frames)
        try:
            self.ledger.add(Entry(session, number, key, name, size, digest))
        except SpoolError:
            self.store.remove([name])
            raise

    def mark_used(self, session: str, number: int) -> Entry | None:
        """Mark one as used: no process gets it again, whatever happens. None if it is not ready (any more)."""
        return self.ledger.take(session, number)

    def fetch(self, entry: Entry) -> SpoolEntry:
        """The correlations that were marked as used. Errors: `SpoolError` if the file is missing or damaged; they stay
        used."""
        if entry.file is None or entry.sha256 is None:
            return SpoolEntry(entry.key, b"")
        try:
            return SpoolEntry(entry.key, self.store.open_once(entry.file, entry.bytes, entry.sha256))
        except SpoolError:
            self.ledger.mark_broken(entry.session, entry.number)
            raise

    def left(self) -> int:
        """The number of queries whose correlations are ready."""
        return self.ledger.ready()[0]

    def rows(self) -> list[LedgerRow]:
        """One row for each session, the oldest first."""
        return self.ledger.rows()

    def sweep(self, grace: float = GRACE_SECONDS) -> None:
        """Remove numbers that only one party has, and files that a crash left behind."""
        self.store.remove(self.ledger.give_up(grace))
        self.store.remove(self.store.strays(self.ledger.files(), grace))


Number = Annotated[int, Field(ge=0, lt=2**53, strict=True)]


class Ref(BaseModel):
    """One query's correlations, by the session that made them and their number in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    session: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$", strict=True)]
    number: Number


@dataclass(frozen=True)
class Missing:
    """The server lacks this number. `known`: it knows the session; `next`: its least ready number from there on (None:
    it has no more)."""

    known: bool
    next: int | None


def answer_proposal(spool: Spool, ref: Ref, program: str, weights: str, client: str) -> Entry | Missing:
    """At the server: mark the client's proposal as used, if it is ready and was made with this client.

    Errors: `SpoolError`, `CorrelationError`.
    """
    if spool.ledger.find(ref.session) != (program, weights, client):
        return Missing(False, None)
    entry = spool.mark_used(ref.session, ref.number)
    return entry or Missing(True, spool.ledger.next_ready(ref.session, ref.number + 1))


class Proposals:
    """At the client: the next proposal. Unknown sessions are left alone: another server may know them."""

    def __init__(self, spool: Spool, program: str, weights: str) -> None:
        self.spool, self.program, self.weights = spool, program, weights
        self._unknown: set[str] = set()
        self._least: dict[str, int] = {}  # by session: the server has no number below

    def next(self, after: Ref | None = None) -> Ref | None:
        """The least ready number of the oldest session that has one; `after`: only numbers after this one."""
        for session in self.spool.ledger.sessions(self.program, self.weights):
            if session in self._unknown:
                continue
            least = self._least.get(session, 0)
            if after is not None and after.session == session:
                least = max(least, after.number + 1)
            number = self.spool.ledger.next_ready(session, least)
            if number is not None:
                return Ref(session=session, number=number)
        return None

    def learn(self, ref: Ref, missing: Missing) -> None:
        """The server lacks the proposed number for good."""
        if missing.known:
            self.spool.ledger.doubt(ref.session, ref.number, missing.next)
        if missing.next is None:
            self._unknown.add(ref.session)
        else:
            self._least[ref.session] = missing.next
