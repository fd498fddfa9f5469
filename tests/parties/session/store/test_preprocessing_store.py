"""Files of corrections: whole or not there, read once, and a bad one spoils nothing but itself."""

from __future__ import annotations

import errno
import os

import pytest
from blindformer.parties.session import preprocessing_store
from blindformer.parties.session.preprocessing_store import PreprocessingStore, StoreError
from blindformer.tests.parties.session.store.pairs import (
    CLIENT,
    PROGRAM,
    SESSION,
    WEIGHTS,
    content,
    key_of,
    make_pair,
)


@pytest.fixture
def store(tmp_path) -> PreprocessingStore:
    """A server's, with three queries."""
    return make_pair(tmp_path, 3)[0]


def use(store: PreprocessingStore, number: int) -> bytes:
    entry = store.ledger.take(SESSION, number)
    assert entry is not None
    assert entry.key == key_of("server", SESSION, number)
    return bytes(store.fetch(entry))


def files(store: PreprocessingStore) -> list[str]:
    return sorted(path.name for path in store.folder.glob("*/*"))


def test_what_comes_out_is_what_went_in_and_is_gone(store):
    assert files(store) == ["0", "1", "2"]
    for number in (1, 0, 2):
        assert use(store, number) == b"".join(content(SESSION, number))
    assert files(store) == []
    assert store.left() == 0


def test_a_client_keeps_keys_and_no_files(tmp_path):
    client = make_pair(tmp_path, 2)[1]
    entry = client.ledger.take(SESSION, 0)
    assert entry.key == key_of("client", SESSION, 0)
    assert client.fetch(entry) == b""
    assert files(client) == []
    assert client.ledger.rows()[0].bytes == 0


def test_files_are_closed_to_others(store):
    for path in store.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("harm", ["missing", "empty", "shorter", "longer", "other", "a folder"])
def test_a_bad_file_spends_its_query_and_no_other(store, harm):
    path = store.folder / SESSION / "1"
    whole = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm != "missing":
        path.write_bytes({"empty": b"", "shorter": whole[:-1], "longer": whole + b"!", "other": b"C" + whole[1:]}[harm])
    entry = store.ledger.take(SESSION, 1)
    with pytest.raises(StoreError, match=r"/1: (is damaged|cannot be read).*these correlations are spent, no others"):
        store.fetch(entry)
    assert harm == "a folder" or not path.exists()
    assert store.ledger.take(SESSION, 1) is None
    assert (store.ledger.rows()[0].broken, store.ledger.rows()[0].ready) == (1, 2)
    for number in (0, 2):
        assert use(store, number) == b"".join(content(SESSION, number))


def test_a_full_disk_leaves_nothing_behind_and_loses_nothing(store, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(preprocessing_store.os, "fsync", full)
        with pytest.raises(StoreError, match=r"No space left on device.*free space"):
            store.add(SESSION, 3, b"k" * 32, [b"more"])
    assert files(store) == ["0", "1", "2"]
    assert store.left() == 3
    store.add(SESSION, 3, b"k" * 32, [b"more"])
    assert store.left() == 4


def test_a_file_is_on_the_disk_before_the_ledger_names_it(store, monkeypatch):
    steps = []
    monkeypatch.setattr(
        preprocessing_store, "sync", lambda path: steps.append((path, (path / SESSION / "3").read_bytes()))
    )
    monkeypatch.setattr(store.ledger, "add", lambda entry: steps.append(entry.file))
    store.add(SESSION, 3, b"k" * 32, [b"mo", b"re"])
    assert steps == [(store.folder, b"more"), f"{SESSION}/3"]


def test_a_dealer_that_goes_away_leaves_no_half_file(store):
    def frames():
        yield b"half"
        raise RuntimeError("the dealer is gone")

    with pytest.raises(RuntimeError):
        store.add(SESSION, 3, b"k" * 32, frames())
    assert files(store) == ["0", "1", "2"]


def test_a_ledger_that_takes_no_more_leaves_no_file(store):
    with pytest.raises(StoreError, match="cannot be used"):
        store.add("no such session", 0, b"k" * 32, [b"x"])
    assert files(store) == ["0", "1", "2"]


def test_the_limit_is_kept(tmp_path):
    store = PreprocessingStore(tmp_path, limit_bytes=100)
    store.begin(SESSION, PROGRAM, WEIGHTS, CLIENT)
    store.room(60)
    store.add(SESSION, 0, b"k" * 32, [bytes(60)])
    with pytest.raises(StoreError, match="would hold more than"):
        store.room(60)
    store.room(40)
    half = PreprocessingStore(tmp_path, limit_bytes=200, share=0.5)
    half.room(90, "another client")
    with pytest.raises(StoreError, match="for one client"):
        half.room(60, CLIENT)
    with pytest.raises(StoreError, match=r"the disk has \d+ MB left, one query takes"):
        PreprocessingStore(tmp_path).room(2**62)


def test_a_sweep_removes_what_nobody_asks_for(store):
    for stray in ("7.0123456789abcdef.part", "8"):
        (store.folder / SESSION / stray).write_bytes(b"left by a crash")
    use(store, 1)
    store.sweep(grace=3600)
    assert files(store) == ["0", "2", "7.0123456789abcdef.part", "8"]
    store.sweep(grace=0)
    assert files(store) == ["2"]
    row = store.ledger.rows()[0]
    assert (row.ready, row.used, row.skipped) == (1, 1, 1)
    assert use(store, 2) == b"".join(content(SESSION, 2))


def test_what_nobody_has_used_for_long_makes_room(store):
    """Its client may have lost its part. What was used before is in the ledger as ever."""
    use(store, 0)
    for keep, ready in ((3600.0, 2), (0.0, 0)):
        PreprocessingStore(store.folder, keep_seconds=keep).begin(f"{ready:032x}", "00" * 16, "00" * 16, CLIENT)
        assert store.left() == ready
    assert files(store) == []
    row = next(row for row in store.ledger.rows() if row.session == SESSION)
    assert (row.ready, row.used, row.skipped) == (0, 1, 2)
    assert store.ledger.take(SESSION, 1) is None


def test_a_sweep_leaves_what_no_store_wrote(store):
    """Whoever names a folder with files of his own as the store keeps these."""
    names = ("letters/7.txt", "cafe/2026", f"{SESSION}/notes", f"{SESSION}/7.part")
    others = [store.folder / name for name in names]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a letter")
    store.sweep(grace=0)
    assert all(path.exists() for path in others)
