"""Preprocessed correlations of one party: each party keeps its part of some queries' on disk, and uses each at most
once. Its ledger, the server's files of corrections, and which correlations both parties have.

At most once holds through crashes, retries, several processes, and an old copy of one party's folder put in place of
the present one: the other party's ledger still knows. It does not hold when old copies of *both* parties' folders are
put back: remove the store after restoring a backup. A ledger that is bound to its folder needs no other one.

A file of corrections is whole and on the disk before it has its name, and removed as soon as it is opened.

The client proposes the least number that it has; the server takes it, or names its own least number:

    client -> server   session and number
    server -> client   taken: marked as used at the server; now the client marks it
                    or missing: the server's least ready number from there on, which the client proposes next

If the client dies between the two marks, the number is lost to both, for the server never takes it twice. A client
whose folder is older than it should be proposes numbers that are used at the server; a server whose folder is older
never gets proposals of numbers that are used at the client. So one current ledger is enough.

A server of delegated layers may deviate, and say that it takes a number again. So its client marks a number before it
proposes it, and its ledger is bound to its folder.
"""

from __future__ import annotations

import hashlib
import math
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

from ...files import sync, whole_file
from .ledger import KEYS, SHARED, Entry, Ledger, StoreError

_NAMES = re.compile(r"[0-9a-f]{32}/[0-9]+(\.[0-9a-f]{16}\.part)?")  # of what is written here, and of its parts
SPARE_BYTES = 64 * 2**20  # of the disk, left for other programs
LEDGER = "ledger.sqlite"
STORE_FILES = (LEDGER, KEYS, SHARED)  # a folder with one of them is a store
GRACE_SECONDS = 3600.0  # for a conversation that is under way, before what it passed over is removed


class PreprocessingStore:
    """Preprocessed correlations, in `folder`. It may be shared by threads, by processes, and across a fork.

    limit_bytes   the most that its files may take together, of which one client may fill `share`
    keep_seconds  after which what was not used is swept away, for its client may have lost its part
    database      where servers share the folder: the Postgres database (URL) with their ledger
    bound         good in this folder alone: all is discarded in a copy of it (Ledger)
    must_exist    open an existing store only

    Errors of all methods: `StoreError`.
    """

    def __init__(
        self,
        folder: Path | str,
        limit_bytes: int | None = None,
        share: float = 1.0,
        *,
        keep_seconds: float = math.inf,
        database: str | None = None,
        bound: bool = False,
        must_exist: bool = False,
    ) -> None:
        self.folder, self.limit_bytes, self.share = Path(folder), limit_bytes, share
        self.keep_seconds = keep_seconds
        if must_exist and not (self.folder / (SHARED if database else LEDGER)).is_file():
            raise StoreError(self.folder, "holds no preprocessed correlations; `blindformer precompute` makes them")
        self.ledger = Ledger(self.folder / LEDGER, database, bound)

    def begin(self, session: str, program: str, weights: str, peer: str = "") -> None:
        """Start adding a session's correlations, bound to a program, its weights and (at the server) a client. Once a
        session: one whose id was used before would put other correlations beside those, which are then taken for
        them."""
        self.sweep()
        self.ledger.open_session(session, program, weights, peer)

    def room(self, size: int, peer: str = "") -> None:
        """Errors: `StoreError` if there is no room for one more query of `size` bytes with the client `peer`."""
        if self.limit_bytes is not None:
            for whose, limit in ((None, self.limit_bytes), (peer, int(self.share * self.limit_bytes))):
                if self.ledger.ready(whose)[1] + size > limit:
                    who = "" if whose is None else " for one client"
                    what = f"would hold more than {limit / 1e6:.0f} MB{who}; use what is there, or raise the limit"
                    raise StoreError(self.folder, what)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise StoreError(self.folder, f"cannot be used ({error.strerror}); give another folder") from None
        if free < size + SPARE_BYTES:
            free_mb, size_mb = f"{free / 1e6:.0f} MB", f"{size / 1e6:.0f} MB"
            raise StoreError(self.folder, f"the disk has {free_mb} left, one query takes {size_mb}; free space")

    def add(self, session: str, number: int, key: bytes, frames: Iterable[bytes | bytearray] | None = None) -> None:
        """Add one query's correlations: this party's key, and the dealer's frames. On the disk when this returns, the
        file before the ledger's row; after an error nothing is left of either. Errors: those of `frames`, too."""
        if frames is None:
            self.ledger.add(Entry(session, number, key, None, 0, None))
            return
        name = f"{session}/{number}"
        path, size, digest = self.folder / name, 0, hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with whole_file(path, durable=True) as stream:
                for frame in frames:
                    stream.write(frame)
                    digest.update(frame)
                    size += len(frame)
            sync(self.folder)
            self.ledger.add(Entry(session, number, key, name, size, digest.hexdigest()))
        except OSError as error:
            self._remove([name])
            what = f"cannot be written ({error.strerror}); free space, or use another folder"
            raise StoreError(path, what) from None
        except StoreError:
            self._remove([name])
            raise

    def fetch(self, entry: Entry) -> mmap.mmap | bytes:
        """At the server, of correlations that were marked as used: the dealer's frames in a row. Their file is removed:
        nobody opens it again. Errors: `StoreError` if it is missing or damaged; the correlations stay used."""
        if entry.file is None:
            return b""
        path, remedy = self.folder / entry.file, "these correlations are spent, no others: ask again"
        try:
            with path.open("rb") as stream:
                path.unlink()
                written = os.fstat(stream.fileno()).st_size
                content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if written else b""
            if written == entry.bytes and hashlib.sha256(content).hexdigest() == entry.sha256:
                return content
            what = "is damaged"
        except OSError as error:
            what = f"cannot be read ({error.strerror})"
        self.ledger.mark_broken(entry.session, entry.number)
        raise StoreError(path, f"{what}; {remedy}")

    def left(self) -> int:
        """The number of queries whose correlations are ready."""
        return self.ledger.ready()[0]

    def sweep(self, grace: float = GRACE_SECONDS) -> None:
        """Remove numbers that only one party has, those that are too old, and files that a crash left behind."""
        self._remove(self.ledger.give_up(grace, time.time() - self.keep_seconds))
        known, before = self.ledger.files(), time.time() - grace
        for path in self.folder.glob("*/*"):
            name = path.relative_to(self.folder).as_posix()
            with suppress(OSError):
                if name not in known and _NAMES.fullmatch(name) and path.is_file() and path.stat().st_mtime <= before:
                    path.unlink()

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)


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

    def message(self, ref: Ref) -> dict[str, int | bool | None]:
        return {"missing": ref.number, "known": self.known, "next": self.next}


def answer_proposal(store: PreprocessingStore, ref: Ref, program: str, weights: str, client: str) -> Entry | Missing:
    """At the server: mark the client's proposal as used, if it is ready and was made with this client.

    Errors: `StoreError`, `CorrelationError`.
    """
    if store.ledger.find(ref.session) != (program, weights, client):
        return Missing(False, None)
    entry = store.ledger.take(ref.session, ref.number)
    return entry or Missing(True, store.ledger.next_ready(ref.session, ref.number + 1))


class Proposals:
    """At the client: the next proposal. Unknown sessions are left alone: another server may know them."""

    def __init__(self, store: PreprocessingStore, program: str, weights: str) -> None:
        self.store, self.program, self.weights = store, program, weights
        self._unknown: set[str] = set()
        self._least: dict[str, int] = {}  # by session: the server has no number below

    def next(self, after: Ref | None = None) -> Ref | None:
        """The least ready number of the oldest session that has one; `after`: only numbers after this one."""
        for session in self.store.ledger.sessions(self.program, self.weights):
            if session in self._unknown:
                continue
            least = self._least.get(session, 0)
            if after is not None and after.session == session:
                least = max(least, after.number + 1)
            number = self.store.ledger.next_ready(session, least)
            if number is not None:
                return Ref(session=session, number=number)
        return None

    def learn(self, ref: Ref, missing: Missing) -> None:
        """The server lacks the proposed number for good. A bound ledger has marked it, whether another server knows the
        session or not."""
        if missing.known or self.store.ledger.bound:
            self.store.ledger.doubt(ref.session, ref.number, missing.next if missing.known else ref.number + 1)
        if missing.next is None:
            self._unknown.add(ref.session)
        else:
            self._least[ref.session] = missing.next
