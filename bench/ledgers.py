"""What the ledgers of both parties' stores must say together, whoever was killed when.

A correlation is named by its session and its number in it. `Diary` is a second record, at the client, of what was
really handed out: it is written after the ledger and before the use, by code that the ledger knows nothing of.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from blindformer.parties.session.ledger import Entry, Keys, Ledger, audit_tag
from blindformer.parties.session.preprocessing_store import PreprocessingStore

DIARY = "diary.txt"


class DiaryLedger(Ledger):
    """A ledger that writes what it hands out into a diary, too."""

    def take(self, session: str, number: int) -> Entry | None:
        entry = super().take(session, number)
        if entry is not None:
            self._note(entry.key, session, number)
        return entry

    def record(self, key: bytes, session: str, number: int) -> None:
        super().record(key, session, number)
        self._note(key, session, number)

    def _note(self, key: bytes, session: str, number: int) -> None:
        with self.path.with_name(DIARY).open("a") as diary:  # one short line: appended whole
            diary.write(f"{audit_tag(key)} {session} {number}\n")


def watched_store(folder: Path) -> PreprocessingStore:
    """A client's store that keeps a diary beside its ledger."""
    store = PreprocessingStore(folder)
    store.ledger = DiaryLedger(store.ledger.path)
    return store


@dataclass
class Audit:
    """`used`: correlations that both parties marked as used. `reused`: descriptions of those that were, or could be,
    used twice. `damaged`: what else does not fit together."""

    used: int = 0
    reused: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def audit(server: Path, client: Path, answered: int) -> Audit:
    """Compare the ledgers, the diary and the files of two stores; nobody may be using them.

    answered: queries that got an answer. Each needs a correlation of its own, marked on both sides.
    """
    audited = Audit()
    PreprocessingStore(server).sweep(grace=0.0)
    sides = {"server": _read(server), "client": _read(client)}
    for side, (ready, used, audits) in sides.items():
        _no_second_time(audited, side, ready, used, audits)
    (ready, _, at_server), (_, _, at_client) = sides["server"], sides["client"]
    pairs = {(session, number) for _, session, number in at_server} & {
        (session, number) for _, session, number in at_client
    }
    audited.used = len(pairs)
    if audited.used < answered:
        audited.reused.append(f"{answered} answers from {audited.used} correlations that both ledgers know as used")
    diary = [tuple(line.split()) for line in (client / DIARY).read_text().splitlines()]
    for what, counts in (
        ("key", Counter(line[0] for line in diary)),
        ("number", Counter(line[1:] for line in diary)),
    ):
        audited.reused += [f"diary: a {what} was handed out {n} times" for n in counts.values() if n > 1]
    taken = {(session, number) for session, number, *_ in sides["client"][1]}
    lacking = taken - {(session, number) for _, session, number in at_server}
    audited.reused += [f"client: number {number} was used, and the server has not marked it" for _, number in lacking]
    unknown = {(line[0], line[1], int(line[2])) for line in diary} - set(at_client)
    audited.reused += [f"diary: number {number} was handed out and not marked" for _, _, number in unknown]
    _files(audited, server, ready)
    return audited


def _no_second_time(audited: Audit, side: str, ready: list[tuple], used: list[tuple], audits: list[tuple]) -> None:
    """What is marked as used cannot be taken again: no key of it is left, under whatever number."""
    tags = {tag for tag, _, _ in audits}
    counts = Counter((session, number) for _, session, number in audits)
    audited.reused += [f"{side}: number {pair[1]} was used {n} times" for pair, n in counts.items() if n > 1]
    for session, number, key, *_ in ready:
        if key is None:
            audited.damaged.append(f"{side}: number {number} is ready and has no key")
        elif audit_tag(key) in tags or (session, number) in counts:
            audited.reused.append(f"{side}: number {number} was used and counts as ready")
    for session, number, key, *_ in used:
        if key is not None:
            audited.reused.append(f"{side}: the key of number {number} is left after its use")
        if (session, number) not in counts:
            audited.damaged.append(f"{side}: number {number} counts as used and was not recorded")


def _files(audited: Audit, folder: Path, ready: list[tuple]) -> None:
    """What is ready has its file, whole; nothing else has one: the store has been swept."""
    names = set()
    for _, number, _, name, size, digest in ready:
        path = folder / name
        names.add(path)
        if not path.is_file():
            audited.damaged.append(f"server: number {number} is ready and has no file")
        elif path.stat().st_size != size or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            audited.damaged.append(f"server: the file of number {number} is damaged")
    strays = {path for path in folder.glob("*/*") if path.is_file()} - names
    audited.damaged += [f"server: the file {path.name} belongs to nothing" for path in strays]


def _read(folder: Path) -> tuple[list[tuple], list[tuple], list[tuple]]:
    """(ready, used, audit) as the ledger's and the keys' files have them."""
    keys = Keys(folder / "keys")

    def rows(state: str) -> list[tuple]:
        fields = "session, number, slot, file, bytes, sha256"
        fetched = db.execute(f"SELECT {fields} FROM queries WHERE state = ?", (state,)).fetchall()
        return [(session, number, keys.read(slot), *rest) for session, number, slot, *rest in fetched]

    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        return rows("ready"), rows("used"), db.execute("SELECT tag, session, number FROM audit").fetchall()
