"""Preprocessed correlations: used without a dealer, once, by whom they were made for; live ones when there are none."""

from __future__ import annotations

import errno
import os
import shutil
import threading

import pytest
from blindformer.models.program.pricing import price
from blindformer.parties.reports.report import AnsweredQuery, phases_in_words, two_party_report
from blindformer.parties.session import preprocessing_store as stores
from blindformer.parties.session.messages import SlotsBusy
from blindformer.parties.session.online import Timings
from blindformer.parties.session.preprocessing_store import PreprocessingStore, StoreError
from blindformer.parties.session.rendezvous_two import REMEMBERED
from blindformer.protocols.channel import Meter
from blindformer.tests.parties.session.site import Site, Turnstile
from blindformer.tests.protocols.programs import Data, Draft, hidden


@pytest.fixture
def site(site, tmp_path):
    site.store = PreprocessingStore(tmp_path / "server")
    return site


@pytest.fixture
def mine(tmp_path) -> PreprocessingStore:
    return PreprocessingStore(tmp_path / "client")


def precompute(site: Site, mine: PreprocessingStore, count: int, **options) -> None:
    with site.client(store=mine, **options) as party:
        party.precompute(count)
        assert party.kept == count
    site.end()


def ask(site: Site, mine: PreprocessingStore, count: int = 1, more: bool = True, **options) -> list[Timings]:
    """One session with some queries: what each took."""
    with site.client(store=mine, **options) as party:
        return [site.ask(party, more and left > 0).timings for left in reversed(range(count))]


def used_once(*stores: PreprocessingStore) -> list[int]:
    """How many uses each ledger has noted; all tags differ, and both parties used the same numbers."""
    audits = [store.ledger.audit() for store in stores]
    tags = [tag for audit in audits for tag, _, _ in audit]
    assert len(set(tags)) == len(tags)
    assert len({frozenset((session, number) for _, session, number in audit) for audit in audits}) == 1
    return [len(audit) for audit in audits]


@pytest.mark.parametrize("more", [True, False])
def test_three_made_ahead_are_used_without_a_dealer_then_live_ones(site, mine, more):
    precompute(site, mine, 3)
    assert (site.store.left(), mine.left(), site.dialled) == (3, 3, 1)
    assert len(list(site.store.folder.glob("*/*"))) == 3
    site.dealer_up = False
    ask(site, mine, 2, more)
    ask(site, mine, 1, more)
    assert (site.store.left(), mine.left(), site.dialled) == (0, 0, 1)
    assert list(site.store.folder.glob("*/*")) == []
    with pytest.raises(ConnectionRefusedError):
        ask(site, mine)
    site.dealer_up = True
    ask(site, mine, 2, more)
    assert site.dialled == 2
    site.end()
    assert used_once(site.store, mine) == [5, 5]


@pytest.mark.parametrize("more", [True, False])
def test_one_session_goes_from_the_store_to_live_ones(site, mine, more):
    precompute(site, mine, 2)
    spent = ask(site, mine, 5, more)
    site.end()
    assert site.dialled == 2
    size = price(site.case.program).offline_bytes
    assert [took.offline_bytes for took in spent] == [0, 0, size, size, size]  # nothing of what is kept travels again
    program, ahead = site.case.program, [took.ahead for took in spent]
    reports = [two_party_report(AnsweredQuery(program, "faithful", took)) for took in spent]
    assert [report.made_ahead for report in reports] == ahead == [True, True, False, False, False]
    assert "made ahead   online" in phases_in_words(reports[:2])
    assert "MB, 2 of 5 made ahead   online" in phases_in_words(reports)
    assert "ahead" not in phases_in_words(reports[2:])
    assert used_once(site.store, mine) == [5, 5]


def test_the_oldest_session_comes_first_and_all_are_used(site, mine):
    for count in (1, 2):
        precompute(site, mine, count)
    site.dealer_up = False
    ask(site, mine, 3)
    site.end()
    assert [row.used for row in mine.ledger.rows()] == [1, 2]


def test_a_query_may_come_before_and_after_precomputing(site, mine):
    with site.client(store=mine) as party:
        site.ask(party, more=True)
        party.precompute(2)
        site.ask(party)
        site.ask(party)
        site.ask(party)
    site.end()
    # 0 live, 1 was announced and did not come, 2 and 3 were made ahead, 5 live
    assert [number for _, _, number in mine.ledger.audit()] == [0, 1, 2, 3, 6]
    used_once(site.store, mine)


def test_only_the_store(site, mine):
    precompute(site, mine, 2)
    site.dealer_up = False
    with site.client(store=mine, use_store="only") as party:
        site.ask(party, more=True)
        site.ask(party, more=True)  # another was announced, and there is none
        for _ in range(2):
            with pytest.raises(StoreError, match="holds no correlations for this model and this server"):
                site.ask(party)
    site.end()


def test_never_the_store(site, mine):
    precompute(site, mine, 1)
    ask(site, mine, 2, use_store="off")
    site.end()
    assert (site.store.left(), mine.left()) == (1, 1)
    assert used_once(site.store, mine) == [2, 2]  # live ones are noted, too


def test_a_server_without_a_store_answers_live_and_loses_nothing(site, mine):
    precompute(site, mine, 2)
    store, site.store = site.store, None
    ask(site, mine, 2)
    with site.client(store=mine) as party, pytest.raises(StoreError, match="server: keeps no store"):
        party.precompute(1)
    site.store = store
    site.dealer_up = False
    ask(site, mine, 2)
    site.end()


def test_what_was_made_with_one_client_is_not_for_another(site, mine):
    precompute(site, mine, 2, client_id="alice")
    ask(site, mine, 2, client_id="mallory")
    assert site.store.left() == 2
    site.dealer_up = False
    ask(site, mine, 2, client_id="alice")
    site.end()


def test_what_was_made_for_other_weights_is_not_used(site, mine, case):
    precompute(site, mine, 1)
    other = Site(case, store=site.store, secret=bytes(16))
    ask(other, mine)
    other.end()
    assert other.dialled == 1
    assert mine.left() == 1


@pytest.mark.parametrize("more", [True, False])
@pytest.mark.parametrize("harm", ["missing", "damaged"])
def test_a_bad_file_ends_one_query_and_no_other(site, mine, harm, more):
    precompute(site, mine, 3)
    path = sorted(site.store.folder.glob("*/*"))[1]
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(path.stat().st_size))
    site.dealer_up = False
    with site.client(store=mine) as party:
        site.ask(party, more)
        with pytest.raises(StoreError, match=r"server: .*these correlations are spent, no others: ask again"):
            site.ask(party, more)
        site.ask(party)
    site.end()
    assert (site.store.ledger.rows()[0].used, site.store.ledger.rows()[0].broken) == (2, 1)


def test_a_session_that_comes_again_with_another_program_adds_nothing(mine, tmp_path):
    """The dealer has forgotten it. What the two programs stored beside each other would be read as each other's, and
    numbers that hide a product with the weights would be passed on as if they were seeds."""
    session, store, sites = "5a" * 16, PreprocessingStore(tmp_path / "server"), []
    for rows in (2, 3):
        d, data = Draft(), Data(2)
        sites.append(Site(d.case(hidden(d, data, rows, bits=10)), store=store))
    first, second = sites
    second.seeds = first.seeds
    precompute(first, mine, 1, session=session)
    for other in range(REMEMBERED):
        first.seeds.put(f"{other:032x}", "a program", bytes(32), "mallory")
    with (
        second.client(session=session, store=PreprocessingStore(tmp_path / "another")) as party,
        pytest.raises(StoreError, match="server: this session is in it already; start a new session"),
    ):
        party.precompute(1)
    second.end()
    assert store.left() == 1


def test_correlations_of_another_length_are_not_used(site, mine, monkeypatch):
    precompute(site, mine, 1)
    fetch = PreprocessingStore.fetch
    monkeypatch.setattr(PreprocessingStore, "fetch", lambda self, entry: bytes(fetch(self, entry)) + bytes(8))
    with (
        site.client(store=mine) as party,
        pytest.raises(StoreError, match="server: the correlations are another program's; they are spent: ask again"),
    ):
        site.ask(party)
    site.end()


@pytest.mark.parametrize("more", [True, False])
def test_numbers_that_one_side_has_lost_are_skipped(site, mine, more):
    precompute(site, mine, 5)
    (session,) = mine.ledger.sessions(site.case.program.hash(), site.served.masked.catalogue.commitment)
    site.store.ledger.take(session, 0)
    site.store.ledger.take(session, 3)
    mine.ledger.take(session, 2)
    site.dealer_up = False
    ask(site, mine, 2, more)
    site.end()
    assert mine.ledger.take(session, 1) is None
    assert mine.ledger.take(session, 4) is None


def test_clients_at_once_share_a_store_and_no_number(site, mine):
    precompute(site, mine, 6)
    site.dealer_up = False
    together = threading.Barrier(3)

    def session() -> None:
        with site.client(store=mine, use_store="only") as party:
            together.wait()
            site.ask(party, more=True)
            site.ask(party)

    for number in range(3):
        site.start(session, f"client {number}")
    site.end()
    assert used_once(site.store, mine) == [6, 6]


def test_a_full_store_is_said_so_and_what_was_kept_is_good(site, mine, case):
    size = price(case.program).offline_bytes
    site.store.limit_bytes = 2 * size + size // 2
    with site.client(store=mine) as party:
        with pytest.raises(StoreError, match=r"server: .*would hold more than .*kept 2 of 5"):
            party.precompute(5)
        assert party.kept == 2
        site.ask(party)  # the session goes on
    site.dealer_up = False
    ask(site, mine, 1)
    site.end()


def fill_disk(store, at, monkeypatch):
    """The file, or the row, of number `at` does not fit."""
    add, full = store.add, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def add_or_fail(session, number, key, frames=None):
        if number != at:
            return add(session, number, key, frames)
        if frames is None:
            raise StoreError("ledger.sqlite", "the disk is full; free space")
        with monkeypatch.context() as patch:
            patch.setattr(stores.os, "fsync", lambda descriptor: (_ for _ in ()).throw(full))
            return add(session, number, key, frames)

    store.add = add_or_fail


@pytest.mark.parametrize("side", ["server", "client"])
def test_a_full_disk_keeps_what_is_there(site, mine, monkeypatch, side):
    fill_disk({"server": site.store, "client": mine}[side], 2, monkeypatch)
    with site.client(store=mine) as party:
        with pytest.raises(StoreError, match="free space"):
            party.precompute(5)
        assert party.kept == 2
        site.ask(party)
    site.dealer_up = False
    ask(site, mine, 1)
    site.end()
    assert used_once(site.store, mine) == [2, 2]


def test_precomputing_goes_on_after_a_busy_server(site, mine):
    gate = Turnstile([1, 0] * 3)
    with site.client(store=mine, server={"admission": gate}) as party:
        refused = 0
        while party.kept < 3:
            try:
                party.precompute(3 - party.kept)
            except SlotsBusy:
                refused += 1
    assert refused == 3
    site.dealer_up = False
    ask(site, mine, 3)
    site.end()
    assert used_once(site.store, mine) == [3, 3]


@pytest.mark.parametrize("side", ["server", "client"])
def test_an_old_copy_of_one_side_s_folder_brings_nothing_back(site, mine, tmp_path, side):
    precompute(site, mine, 2)
    shutil.copytree(tmp_path / side, tmp_path / "copy")
    site.dealer_up = False
    ask(site, mine, 2)
    old = PreprocessingStore(tmp_path / "copy")
    if side == "server":
        site.store = old
    assert old.left() == 2
    client = mine if side == "server" else old
    with site.client(store=client, use_store="only") as party, pytest.raises(StoreError, match="holds no correlations"):
        site.ask(party)
    site.end()
    if side == "server":
        assert old.left() == 2
    else:
        used_once(site.store, mine)


def test_tables_by_keys_are_passed_on_with_each_query_live_and_made_ahead(mine, tmp_path):
    """And the receipts' figures of both parties say so alike."""
    d, data = Draft(), Data(2)
    x, table = hidden(d, data, 200, bits=10), data.ints(128, 1, bits=20)
    case = d.case(d("lookup", x, d.constant(table), start=0, bits=11, low=4, drop=0, width=32))
    cell = (d.values[x] & (1 << 11) - 1) >> 4
    site, size = Site(case, store=PreprocessingStore(tmp_path / "tables")), price(case.program).passed_on_bytes
    precompute(site, mine, 1)
    assert size > 0
    with site.client(store=mine) as party:
        for ahead, more in ((True, True), (False, True), (False, False)):
            answer = party.query(case.client, more=more)
            (result,) = answer.outputs.values()
            assert ((result == table[cell, 0]) | (result == table[(cell + 1) % 128, 0])).all()
            assert answer.timings.ahead is ahead
            assert answer.timings.offline_bytes == (size if ahead else price(case.program).offline_bytes)
        rows = {row.kind: row for row in party.notes.by_kind(party.server, Meter(received=party.weights.downloaded))}
        assert (rows["correlations"].received, rows["correlations"].sent) == (3 * size, 0)
    site.end()
