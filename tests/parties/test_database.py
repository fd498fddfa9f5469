"""What is committed is on the disk, whichever database holds it; where it cannot be, one line says so."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from blindformer.parties import database as databases
from blindformer.parties.database import read_url
from blindformer.parties.session.preprocessing_store import PreprocessingStore, StoreError
from blindformer.tests.parties.session.store.pairs import (
    CLIENT,
    PROGRAM,
    SESSION,
    WEIGHTS,
    add_both,
    make_pair,
)
from blindformer.tests.shared.postgres import Postgres
from sqlalchemy import text


@pytest.fixture
def shared(postgres: Postgres, tmp_path: Path) -> PreprocessingStore:
    """A server's store of four queries whose ledger is in Postgres."""
    return make_pair(tmp_path, 4, database=postgres.new())[0]


def url_of(store: PreprocessingStore) -> str:
    return str(store.ledger.database._where)


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("", "is no address of a database; write postgresql://USER@HOST/DATABASE"),
        ("hi", "is no address of a database"),
        ("mysql://hi@there/db", "is no address of a Postgres database"),
        ("postgresql://hi@there", "is no address of a Postgres database"),
        ("postgresql://me:secret@there:x/db", "is no address of a database"),
    ],
)
def test_an_address_that_is_none_is_one_line_without_a_password(tmp_path, address, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        read_url(address, ValueError)
    assert "secret" not in str(caught.value)
    with pytest.raises(StoreError, match=problem) as caught:
        PreprocessingStore(tmp_path, database=address or "x").left()
    assert "secret" not in str(caught.value)


def test_elsewhere_a_certificate_is_checked_and_no_password_is_shown(tmp_path):
    far = read_url("postgresql://me:secret@there/db", ValueError)
    assert dict(far.query) == {"sslmode": "verify-full", "sslrootcert": "system"}
    assert read_url("postgresql://me@there/db?sslmode=require", ValueError).query["sslmode"] == "require"
    assert not read_url("postgresql:///db", ValueError).query
    with pytest.raises(StoreError, match="cannot be reached") as caught:
        PreprocessingStore(tmp_path, database="postgresql://me:secret@127.0.0.1:1/db").left()
    assert "secret" not in str(caught.value)


def test_replicas_share_what_one_has_made_and_what_one_has_used(shared):
    replica = PreprocessingStore(shared.folder, database=url_of(shared))
    entry = replica.ledger.take(SESSION, 1)
    assert entry is not None
    assert shared.ledger.take(SESSION, 1) is None
    assert bytes(replica.fetch(entry)) == f"corrections {SESSION} 1".encode()
    assert shared.left() == replica.left() == 3


def test_a_folder_and_its_ledger_belong_together(postgres, shared, tmp_path):
    with pytest.raises(StoreError, match=r"is the ledger of another folder than .*; mount that one at every server"):
        PreprocessingStore(tmp_path / "other", database=url_of(shared)).left()
    with pytest.raises(StoreError, match=r"has its ledger in a database; give that, too \(server.database\)"):
        PreprocessingStore(shared.folder).left()
    alone = make_pair(tmp_path / "alone", 1)[0]
    with pytest.raises(StoreError, match="has a ledger of its own; give servers that share one a new, empty folder"):
        PreprocessingStore(alone.folder, database=postgres.new()).left()
    assert alone.left() == 1


def test_two_that_begin_at_once_make_one_store(postgres, tmp_path):
    url, failed = postgres.new(), []

    def begin() -> None:
        try:
            PreprocessingStore(tmp_path / "server", database=url).left()
        except StoreError as error:
            failed.append(error)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_store_that_is_gone_uses_nothing_and_comes_back_with_all(postgres, shared, tmp_path):
    used = shared.ledger.take(SESSION, 0)
    postgres.kill()
    try:
        with pytest.raises(StoreError, match=r"cannot be reached .*; see whether Postgres runs there"):
            shared.ledger.take(SESSION, 1)
    finally:
        postgres.start()
    assert used is not None
    assert [shared.ledger.take(SESSION, number) is not None for number in (0, 1)] == [False, True]


def test_a_store_that_is_slow_is_given_up_and_uses_nothing(shared, monkeypatch):
    monkeypatch.setattr(databases, "PATIENCE", 1.0)
    slow = PreprocessingStore(shared.folder, database=url_of(shared))
    assert slow.left() == 4
    with shared.ledger.database.write() as db:
        db.execute(text("SELECT * FROM queries FOR UPDATE"))
        with pytest.raises(StoreError, match=r"does not answer in time; nothing was used|another process holds it"):
            slow.ledger.take(SESSION, 0)
    assert slow.ledger.take(SESSION, 0) is not None


def test_a_store_that_may_forget_is_refused(postgres, tmp_path):
    for value in ("off", "on"):
        postgres.run(f"ALTER SYSTEM SET full_page_writes = {value}")
        postgres.run("SELECT pg_reload_conf()")
        if value == "off":
            with pytest.raises(StoreError, match="may forget what it has confirmed: set full_page_writes = on"):
                PreprocessingStore(tmp_path / "server", database=postgres.new()).left()


def test_another_format_is_refused_and_left_alone(shared, tmp_path):
    with shared.ledger.database.write() as db:
        db.execute(text("UPDATE blindformer SET format = 99"))
    with pytest.raises(StoreError, match="has format 99, this version reads"):
        PreprocessingStore(shared.folder, database=url_of(shared)).left()


def test_what_a_replica_adds_another_hands_out(shared, tmp_path):
    other, client = PreprocessingStore(shared.folder, database=url_of(shared)), PreprocessingStore(tmp_path / "client")
    add_both(other, client, 4)
    assert shared.ledger.take(SESSION, 4) is not None
    assert shared.ledger.find(SESSION) == (PROGRAM, WEIGHTS, CLIENT)
