"""What is used is used: durably, before it is handed out, whoever asks and however often."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from blindformer.parties.session import ledger as ledgers
from blindformer.parties.session.ledger import Entry, Ledger, StoreError, audit_tag
from blindformer.protocols.errors import CorrelationError
from blindformer.tests.parties.session.store.pairs import CLIENT, PROGRAM, SESSION, WEIGHTS, key_of
from blindformer.tests.parties.statements import at_each_statement
from blindformer.versions import PROTOCOL
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

OURS = ("database.py", "ledger.py", "keys.py")


@pytest.fixture(params=["SQLite", "Postgres"])
def ledger(request, tmp_path) -> Ledger:
    shared = request.getfixturevalue("postgres").new() if request.param == "Postgres" else None
    return filled(tmp_path / "ledger.sqlite", 5, shared)


def again(ledger: Ledger) -> Ledger:
    """As another process opens it: another replica, or the same after a restart."""
    return Ledger(ledger.path, None if ledger.database.file else str(ledger.database._where))


def filled(path: Path, count: int, shared: str | None = None, bound: bool = False) -> Ledger:
    ledger = Ledger(path, shared, bound)
    ledger.open_session(SESSION, PROGRAM, WEIGHTS, CLIENT)
    for number in range(count):
        ledger.add(Entry(SESSION, number, key_of("server", SESSION, number), f"{SESSION}/{number}", 12, "aa"))
    return ledger


def test_an_entry_is_handed_out_once_with_its_key(ledger):
    entry = ledger.take(SESSION, 2)
    assert entry == Entry(SESSION, 2, key_of("server", SESSION, 2), f"{SESSION}/2", 12, "aa")
    assert ledger.take(SESSION, 2) is None
    assert again(ledger).take(SESSION, 2) is None
    assert ledger.take(SESSION, 99) is None
    assert ledger.take("11" * 16, 1) is None


@pytest.mark.parametrize("open", [True, False])
@pytest.mark.parametrize("how", ["copied", "restored", "restored in place", "another machine"])
def test_a_copy_of_a_bound_ledger_hands_nothing_out(tmp_path, monkeypatch, how, open):
    """Whether it is opened anew, or takes the place of one that a process has open. What is made there is good."""
    home = tmp_path / "home"
    ledger = filled(home / "ledger.sqlite", 5, bound=True)
    shutil.copytree(home, tmp_path / "copy")
    assert ledger.take(SESSION, 0) is not None
    if how == "copied":
        home.rename(tmp_path / "away")
        (tmp_path / "copy").rename(home)
    elif how == "restored":
        shutil.rmtree(home)
        shutil.copytree(tmp_path / "copy", home)
    elif how == "restored in place":
        for file in (tmp_path / "copy").iterdir():
            (home / file.name).write_bytes(file.read_bytes())
    else:
        monkeypatch.setattr(ledgers, "_MACHINE", tmp_path / "none")
        monkeypatch.setattr(ledgers, "getnode", lambda: 5)
    if not open:
        ledger = Ledger(home / "ledger.sqlite", bound=True)
    assert ledger.take(SESSION, 1) is None
    assert ledger.ready() == (0, 0)
    assert ledger.keys.filled() == set()
    ledger.add(Entry(SESSION, 9, key_of("server", SESSION, 9), None, 0, None))
    assert Ledger(home / "ledger.sqlite", bound=True).take(SESSION, 9) is not None


def test_a_bound_ledger_is_good_where_it_was_made_and_under_another_name(tmp_path):
    filled(tmp_path / "home" / "ledger.sqlite", 5, bound=True)
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    assert Ledger(tmp_path / "copy" / "ledger.sqlite", bound=True).take(SESSION, 1) is None
    (tmp_path / "home").rename(tmp_path / "moved")
    assert Ledger(tmp_path / "moved" / "ledger.sqlite", bound=True).take(SESSION, 1) is not None


def test_a_key_that_was_taken_is_nowhere_in_the_folder(ledger):
    ledger.take(SESSION, 2)
    assert [number for number in range(5) if holders(ledger.path.parent, number)] == [0, 1, 3, 4]


def holders(folder: Path, number: int) -> set[str]:
    """The files in which a query's key is found."""
    key = key_of("server", SESSION, number)
    return {path.name for path in folder.iterdir() if key in path.read_bytes()}


@pytest.mark.parametrize(("act", "after"), [("add", "ready"), ("take", "used"), ("give_up", "skipped")])
def test_at_every_step_a_key_is_in_its_slot_alone_and_then_nowhere(tmp_path, act, after):
    """The folder as a crash would leave it, after each line that touches it. The next one that opens a ledger whose
    crash came between mark and wiping wipes."""
    ledger = filled(tmp_path / "ledger.sqlite", 5)
    number, steps, copy = 5 if act == "add" else 4, [], tmp_path / "copy"
    ledger.doubt(SESSION, 4, None)

    def look(frame, event, _):
        if event != "call" and frame.f_code.co_filename.endswith(OURS):
            shutil.copytree(ledger.path.parent, copy, ignore=shutil.ignore_patterns("copy"))
            files, crashed = holders(copy, number), Ledger(copy / ledger.path.name)
            with crashed.database.read() as db:
                query = text("SELECT state FROM queries WHERE number = :number")
                row = db.execute(query, {"number": number}).one_or_none()
            steps.append((row[0] if row else None, files, holders(copy, number)))
            shutil.rmtree(copy)
        return look

    previous = sys.gettrace()
    sys.settrace(look)
    try:
        if act == "add":
            ledger.add(Entry(SESSION, 5, key_of("server", SESSION, 5), None, 0, None))
        elif act == "take":
            assert ledger.take(SESSION, 4)
        else:
            assert ledger.give_up(0) == [f"{SESSION}/4"]
    finally:
        sys.settrace(previous)
    assert {name for _, files, _ in steps for name in files} == {"keys"}
    assert all(bool(files) == (state == "ready") for state, _, files in steps)
    assert steps[-1][0] == after
    assert bool(steps[-1][1]) == (act == "add")
    assert act == "add" or (after, {"keys"}, set()) in steps  # a crash that left the key was among them


def test_numbers_are_found_in_order(ledger):
    assert ledger.sessions(PROGRAM, WEIGHTS) == [SESSION]
    assert ledger.sessions(PROGRAM, "00" * 16) == []
    assert ledger.find(SESSION) == (PROGRAM, WEIGHTS, CLIENT)
    assert ledger.find("11" * 16) is None
    ledger.take(SESSION, 0)
    assert [ledger.next_ready(SESSION, least) for least in (0, 1, 2, 5)] == [1, 1, 2, None]
    for number in range(1, 5):
        ledger.take(SESSION, number)
    assert ledger.sessions(PROGRAM, WEIGHTS) == []


def test_rows_count_every_state(ledger):
    ledger.take(SESSION, 0)
    ledger.take(SESSION, 2)
    ledger.mark_broken(SESSION, 2)
    ledger.doubt(SESSION, 4, None)
    assert ledger.give_up(0) == [f"{SESSION}/1", f"{SESSION}/4"]
    (row,) = ledger.rows()
    assert (row.session, row.program, row.weights, row.peer) == (SESSION, PROGRAM, WEIGHTS, CLIENT)
    assert (row.ready, row.used, row.skipped, row.broken, row.bytes) == (1, 1, 2, 1, 12)
    assert ledger.ready() == (1, 12)
    assert ledger.files() == {f"{SESSION}/3"}


def test_nothing_is_given_up_that_may_be_under_way(ledger):
    ledger.take(SESSION, 3)
    ledger.doubt(SESSION, 4, None)
    assert ledger.give_up(60) == []
    assert ledger.next_ready(SESSION) == 0
    assert ledger.take(SESSION, 4) is not None


def test_a_session_is_opened_once(ledger):
    with pytest.raises(StoreError, match="this session is in it already"):
        ledger.open_session(SESSION, PROGRAM, WEIGHTS, CLIENT)


def test_every_use_leaves_its_tag_and_a_second_one_is_refused(ledger):
    key = key_of("live", SESSION, 0)
    ledger.take(SESSION, 1)
    ledger.record(key, "11" * 16, 7)
    tags = [audit_tag(key_of("server", SESSION, 1)), audit_tag(key)]
    assert ledger.audit() == [(tags[0], SESSION, 1), (tags[1], "11" * 16, 7)]
    assert key.hex() not in tags
    with pytest.raises(CorrelationError, match="used before"):
        ledger.record(key, "22" * 16, 8)
    assert len(ledger.audit()) == 2


def test_the_last_uses_are_noted_and_no_more(ledger, monkeypatch):
    monkeypatch.setattr(ledgers, "NOTED", 10)
    monkeypatch.setattr(ledgers, "SWEPT", "")  # each time, not one time in 256
    keys = [key_of("live", SESSION, number) for number in range(25)]
    for number, key in enumerate(keys):
        ledger.record(key, "11" * 16, number)
    assert [number for _, _, number in ledger.audit()] == [*range(14, 25)]
    for key in keys[-10:]:
        with pytest.raises(CorrelationError, match="used before"):
            ledger.record(key, "22" * 16, 0)
    assert ledger.take(SESSION, 1) is not None
    assert ledger.take(SESSION, 1) is None, "of the store, however long ago"


def test_a_key_that_was_used_live_cannot_be_taken(ledger):
    """Two roads to one key: none should be there, and if it is, it leads nowhere."""
    ledger.record(key_of("server", SESSION, 1), SESSION, 1)
    with pytest.raises(CorrelationError, match="used before"):
        ledger.take(SESSION, 1)
    assert ledger.take(SESSION, 1) is None
    assert ledger.next_ready(SESSION, 1) == 2


@pytest.mark.parametrize("statement", ["BEGIN", "UPDATE", "INSERT INTO audit", "COMMIT"])
def test_what_fails_on_the_way_is_not_handed_out(ledger, statement):
    """And is there again if the transaction did not end."""

    def fail(sql: str) -> None:
        if sql.startswith(statement):
            raise OperationalError(sql, {}, OSError("disk I/O error"))

    with at_each_statement(fail), pytest.raises(StoreError, match=r": cannot be used \(disk I/O error\)"):
        ledger.take(SESSION, 0)
    assert ledger.take(SESSION, 0) is not None


def test_a_full_disk_is_said_so_and_loses_nothing(tmp_path):
    """SQLite's own error, by a limit on the pages of the file."""
    ledger = filled(tmp_path / "ledger.sqlite", 5)

    def limit(db, record) -> None:
        db.execute("PRAGMA max_page_count = 1")

    def fill() -> None:
        for number in range(100, 1000):
            ledger.add(Entry(SESSION, number, key_of("full", SESSION, number), None, 0, None))

    event.listen(ledger.database._engine, "connect", limit)
    with pytest.raises(StoreError, match="the disk is full; free space"):
        fill()
    event.remove(ledger.database._engine, "connect", limit)
    assert all(ledger.take(SESSION, number) for number in range(5))


def test_a_damaged_or_foreign_or_open_ledger_is_explained(tmp_path):
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is no database, and never was one" * 100)
    path.chmod(0o600)
    with pytest.raises(StoreError, match="is damaged; move it away"):
        Ledger(path).ready()
    newer = filled(tmp_path / "newer.sqlite", 1)
    for version in (99, 1):
        with sqlite3.connect(newer.path) as db:
            db.execute(f"PRAGMA user_version = {version}")
        kept = newer.path.read_bytes(), newer.keys.path.read_bytes()
        with pytest.raises(
            StoreError, match=f"has format {version}, this version reads {PROTOCOL}; use another folder"
        ):
            Ledger(newer.path).ready()
        assert (newer.path.read_bytes(), newer.keys.path.read_bytes()) == kept
    newer.path.chmod(0o644)
    with pytest.raises(StoreError, match="can be read by others; run: chmod 600"):
        Ledger(newer.path).ready()


def test_the_ledger_is_closed_to_others(tmp_path):
    ledger = filled(tmp_path / "made" / "ledger.sqlite", 1)
    assert ledger.path.stat().st_mode & 0o777 == ledger.keys.path.stat().st_mode & 0o777 == 0o600
    assert ledger.path.parent.stat().st_mode & 0o777 == 0o700


def test_a_key_that_is_missing_spends_its_query_and_no_other(ledger):
    """As where a copy of the ledger was put back, or with the file gone."""
    ledger.keys.wipe([1])
    assert [entry and entry.number for entry in (ledger.take(SESSION, 0), ledger.take(SESSION, 1))] == [None, 1]
    ledger.keys.path.unlink()
    assert ledger.take(SESSION, 2) is None
    assert ledger.next_ready(SESSION) == 3
    assert [(row.ready, row.used, row.broken) for row in ledger.rows()] == [(2, 1, 2)]


def test_threads_that_take_at_once_share_nothing(ledger):
    taken, start = [], threading.Barrier(4)

    def take() -> None:
        mine = again(ledger)
        start.wait()
        for number in range(5):
            if mine.take(SESSION, number):
                taken.append(number)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [0, 1, 2, 3, 4]


TAKER = """
import sys
from pathlib import Path
from blindformer.parties.session.ledger import Ledger
ledger, session = Ledger(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
while (number := ledger.next_ready(session)) is not None:
    if ledger.take(session, number):
        print(number, flush=True)
"""


def test_processes_that_are_killed_leave_no_number_to_take_twice(tmp_path):
    """Two processes take at once and are killed in the middle, three times over."""
    count = 150
    ledger = filled(tmp_path / "ledger.sqlite", count)
    taken: list[int] = []
    for round_ in range(3):
        command = [sys.executable, "-c", TAKER, str(ledger.path), SESSION]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        takers = [subprocess.Popen(command, **pipes) for _ in range(2)]
        for taker in takers:
            assert taker.stdout.readline() == "ready\n"
        for taker in takers:
            taker.stdin.write("\n")
            taker.stdin.flush()
        time.sleep(0.02 * (1 + round_))  # any moment will do
        for taker in takers:
            os.kill(taker.pid, signal.SIGKILL)
            rest = taker.communicate()[0]
            taken += [int(line) for line in rest.split("\n")[:-1]]
    assert len(taken) == len(set(taken))
    used = [number for _, _, number in ledger.audit()]
    assert set(taken) <= set(used)
    assert len(used) == len(set(used)) == count - ledger.ready()[0]
    assert len(used) - len(taken) <= 6  # at most one lost for each that was killed


def test_the_store_is_imported_without_torch():
    code = "import blindformer.parties.session.preprocessing_store, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
