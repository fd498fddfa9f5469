"""Files of corrections: whole or not there, read once, and a bad one spoils nothing but itself."""

from __future__ import annotations

import errno
import os

import pytest
from blindformer.parties.session import spool as stores
from blindformer.parties.session.spool import Spool, SpoolError
from blindformer.tests.parties.session.spool.pairs import CLIENT, PROGRAM, SESSION, WEIGHTS, content, key_of, make_pair


@pytest.fixture
def spool(tmp_path) -> Spool:
    """A server's, with three queries."""
    return make_pair(tmp_path, 3)[0]


def use(spool: Spool, number: int) -> bytes:
    entry = spool.ledger.take(SESSION, number)
    assert entry is not None
    assert entry.key == key_of("server", SESSION, number)
    return bytes(spool.fetch(entry))


def files(spool: Spool) -> list[str]:
    return sorted(path.name for path in spool.folder.glob("*/*"))


def test_what_comes_out_is_what_went_in_and_is_gone(spool):
    assert files(spool) == ["0", "1", "2"]
    for number in (1, 0, 2):
        assert use(spool, number) == b"".join(content(SESSION, number))
    assert files(spool) == []
    assert spool.left() == 0


def test_a_client_keeps_keys_and_no_files(tmp_path):
    client = make_pair(tmp_path, 2)[1]
    entry = client.ledger.take(SESSION, 0)
    assert entry.key == key_of("client", SESSION, 0)
    assert client.fetch(entry) == b""
    assert files(client) == []
    assert client.ledger.rows()[0].bytes == 0


def test_files_are_closed_to_others(spool):
    for path in spool.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("harm", ["missing", "empty", "shorter", "longer", "other", "a folder"])
def test_a_bad_file_spends_its_query_and_no_other(spool, harm):
    path = spool.folder / SESSION / "1"
    whole = path.read_bytes()
    path.unlink()
    if harm == "a folder":
        path.mkdir()
    elif harm != "missing":
        path.write_bytes({"empty": b"", "shorter": whole[:-1], "longer": whole + b"!", "other": b"C" + whole[1:]}[harm])
    entry = spool.ledger.take(SESSION, 1)
    with pytest.raises(SpoolError, match=r"/1: (is damaged|cannot be read).*these correlations are spent, no others"):
        spool.fetch(entry)
    assert harm == "a folder" or not path.exists()
    assert spool.ledger.take(SESSION, 1) is None
    assert (spool.ledger.rows()[0].broken, spool.ledger.rows()[0].ready) == (1, 2)
    for number in (0, 2):
        assert use(spool, number) == b"".join(content(SESSION, number))


def test_a_full_disk_leaves_nothing_behind_and_loses_nothing(spool, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(stores.os, "fsync", full)
        with pytest.raises(SpoolError, match=r"No space left on device.*free space"):
            spool.add(SESSION, 3, b"k" * 32, [b"more"])
    assert files(spool) == ["0", "1", "2"]
    assert spool.left() == 3
    spool.add(SESSION, 3, b"k" * 32, [b"more"])
    assert spool.left() == 4


def test_a_file_is_on_the_disk_before_the_ledger_names_it(spool, monkeypatch):
    steps = []
    monkeypatch.setattr(stores, "sync", lambda path: steps.append((path, (path / SESSION / "3").read_bytes())))
    monkeypatch.setattr(spool.ledger, "add", lambda entry: steps.append(entry.file))
    spool.add(SESSION, 3, b"k" * 32, [b"mo", b"re"])
    assert steps == [(spool.folder, b"more"), f"{SESSION}/3"]


def test_a_dealer_that_goes_away_leaves_no_half_file(spool):
    def frames():
        yield b"half"
        raise RuntimeError("the dealer is gone")

    with pytest.raises(RuntimeError):
        spool.add(SESSION, 3, b"k" * 32, frames())
    assert files(spool) == ["0", "1", "2"]


def test_a_ledger_that_takes_no_more_leaves_no_file(spool):
    with pytest.raises(SpoolError, match="cannot be used"):
        spool.add("no such session", 0, b"k" * 32, [b"x"])
    assert files(spool) == ["0", "1", "2"]


def test_the_limit_is_kept(tmp_path):
    spool = Spool(tmp_path, limit_bytes=100)
    spool.begin(SESSION, PROGRAM, WEIGHTS, CLIENT)
    spool.room(60)
    spool.add(SESSION, 0, b"k" * 32, [bytes(60)])
    with pytest.raises(SpoolError, match="would hold more than"):
        spool.room(60)
    spool.room(40)
    half = Spool(tmp_path, limit_bytes=200, share=0.5)
    half.room(90, "another client")
    with pytest.raises(SpoolError, match="for one client"):
        half.room(60, CLIENT)
    with pytest.raises(SpoolError, match=r"the disk has \d+ MB left, one query takes"):
        Spool(tmp_path).room(2**62)


def test_a_sweep_removes_what_nobody_asks_for(spool):
    for stray in ("7.0123456789abcdef.part", "8"):
        (spool.folder / SESSION / stray).write_bytes(b"left by a crash")
    use(spool, 1)
    spool.sweep(grace=3600)
    assert files(spool) == ["0", "2", "7.0123456789abcdef.part", "8"]
    spool.sweep(grace=0)
    assert files(spool) == ["2"]
    row = spool.ledger.rows()[0]
    assert (row.ready, row.used, row.skipped) == (1, 1, 1)
    assert use(spool, 2) == b"".join(content(SESSION, 2))


def test_what_nobody_has_used_for_long_makes_room(spool):
    """Its client may have lost its part. What was used before is in the ledger as ever."""
    use(spool, 0)
    for keep, ready in ((3600.0, 2), (0.0, 0)):
        Spool(spool.folder, keep_seconds=keep).begin(f"{ready:032x}", "00" * 16, "00" * 16, CLIENT)
        assert spool.left() == ready
    assert files(spool) == []
    row = next(row for row in spool.ledger.rows() if row.session == SESSION)
    assert (row.ready, row.used, row.skipped) == (0, 1, 2)
    assert spool.ledger.take(SESSION, 1) is None


def test_a_sweep_leaves_what_no_spool_wrote(spool):
    """Whoever names a folder with files of his own as the spool keeps these."""
    names = ("letters/7.txt", "cafe/2026", f"{SESSION}/notes", f"{SESSION}/7.part")
    others = [spool.folder / name for name in names]
    for path in others:
        path.parent.mkdir(exist_ok=True)
        path.write_text("a letter")
    spool.sweep(grace=0)
    assert all(path.exists() for path in others)
