"""One party's spool: a folder with the ledger, and at the server the files of corrections."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .ledger import SHARED, Entry, Ledger, LedgerRow, SpoolError
from .store import Store

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
    must_exist    do not make one, only look at it

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
        """A session is going to add correlations, bound to a program, its weights and (at the server) a client."""
        self.sweep()
        if self.ledger.find(session) is None:
            self.ledger.open_session(session, program, weights, peer)

    def room(self, size: int, peer: str = "") -> None:
        """Errors: `SpoolError` if there is no room for one more query of `size` bytes, made with the client `peer`."""
        if self.limit_bytes is not None:
            for whose, limit in ((None, self.limit_bytes), (peer, int(self.share * self.limit_bytes))):
                if self.ledger.ready(whose)[1] + size > limit:
                    who = "" if whose is None else " for one client"
                    what = f"would hold more than {limit / 1e6:.0f} MB{who}; use what is there, or raise the limit"
                    raise SpoolError(self.folder, what)
        self.store.room(size)

    def add(self, session: str, number: int, key: bytes, frames: Iterable[bytes | bytearray] | None = None) -> None:
        """Keep one query's correlations: this party's key, and what the dealer sent. On the disk when this returns."""
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
        """Use one up: from here on nobody gets it again, whatever happens. None if it is not ready (any more)."""
        return self.ledger.take(session, number)

    def fetch(self, entry: Entry) -> SpoolEntry:
        """What was marked as used. Errors: `SpoolError` if its file is missing or damaged; it stays used."""
        if entry.file is None or entry.sha256 is None:
            return SpoolEntry(entry.key, b"")
        try:
            return SpoolEntry(entry.key, self.store.open_once(entry.file, entry.bytes, entry.sha256))
        except SpoolError:
            self.ledger.mark_broken(entry.session, entry.number)
            raise

    def left(self) -> int:
        """How many queries' correlations are ready."""
        return self.ledger.ready()[0]

    def rows(self) -> list[LedgerRow]:
        """One row for each session, the oldest first."""
        return self.ledger.rows()

    def sweep(self, grace: float = GRACE_SECONDS) -> None:
        """Remove what nobody is going to use: numbers that only one party has, and files that a crash left behind."""
        self.store.remove(self.ledger.give_up(grace))
        self.store.remove(self.store.strays(self.ledger.files(), grace))
