"""Delegated passes on stored corrections: without a dealer, each mask once, through crashes, copies and a server that
lies about what it has."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.receipts.statement import Signer
from blindformer.parties.session import delegated_client
from blindformer.parties.session.delegated_server import DelegatedServer
from blindformer.parties.session.delegation import PublicWeights, corrections_bytes
from blindformer.parties.session.ledger import Entry, Ledger
from blindformer.parties.session.messages import SlotsBusy
from blindformer.parties.session.preprocessing_store import PreprocessingStore, StoreError
from blindformer.protocols.errors import PeerDeviated, PeerError, PeerGone
from blindformer.tests.parties.session.delegated_site import WIDE, DelegatedSite
from blindformer.tests.parties.session.site import Turnstile
from blindformer.tests.parties.session.test_delegated_sessions import drawn, messages

__all__ = ["drawn"]

FOUR = ((0, 4), (1, 4), (2, 4))


class Stores:
    """A site whose server and client have stores. `own`: the client deals by itself, and there is no dealer."""

    def __init__(self, root: Path, own: bool, plan: str = "faithful") -> None:
        self.site, self.root = DelegatedSite(plan=plan), root
        self.theirs = PreprocessingStore(root / "server")
        self.own = PublicWeights(self.site.model.manifest, self.site.model.integers) if own else None
        self.server: dict[str, Any] = {"store": self.theirs, "client_id": "alice"}

    def client(self, **options: Any) -> Any:
        mine = PreprocessingStore(self.root / "client", bound=True)
        server = self.server | options.pop("server", {})
        return self.site.client(server=server, **{"store": mine, "own": self.own, **options})

    def precompute(self, count: int, sequence: Any = FOUR, **options: Any) -> None:
        client = self.client(**options)
        client.precompute(sequence, count)
        assert client.kept == count
        client.close()

    def ask(self, count: int = 1, rows: int = 4, **options: Any) -> None:
        """One session without live passes."""
        client = self.client(**{"use_store": "only", **options})
        try:
            for _ in range(count):
                self.site.ask(client, torch.randn(1, rows, WIDE))
        finally:
            client.close()

    @property
    def left(self) -> tuple[int, int]:
        return self.theirs.left(), PreprocessingStore(self.root / "client").left()


@pytest.fixture(params=[(False, "faithful"), (True, "fast")], ids=["dealer", "own"])
def stores(request, tmp_path, drawn) -> Iterator[Stores]:
    """At the end no mask was drawn twice, and none that was not dealt."""
    stores = Stores(tmp_path, *request.param)
    yield stores
    drawn.check()
    stores.site.close()


def test_passes_that_are_too_old_for_the_server_are_passed_over(stores):
    stores.precompute(2)
    PreprocessingStore(stores.theirs.folder, keep_seconds=0.0).sweep()
    assert stores.left == (0, 2)
    with pytest.raises(StoreError, match="holds no masks"):
        stores.ask()
    assert stores.left == (0, 0)
    stores.precompute(1)
    stores.ask()


def test_stored_passes_need_no_dealer_and_are_used_once(stores):
    stores.precompute(3)
    assert stores.left == (3, 3)
    assert (len(stores.site.ends.get("dealer", [])) > 0) is (stores.own is None)
    before, seen = len(stores.site.ends.get("dealer", [])), []
    stores.ask(2, on_pass=lambda name, answer: seen.append(answer))
    stores.ask(1)
    assert stores.left == (0, 0)
    assert list(stores.theirs.folder.glob("*/*")) == []
    assert len(stores.site.ends.get("dealer", [])) == before
    assert [(one.timings.ahead, one.timings.offline_bytes) for one in seen] == [(True, 0)] * 2
    with pytest.raises(StoreError, match="holds no masks for 4 rows, this model, server and dealer"):
        stores.ask(1)
    assert stores.site.ended() == []


def test_a_session_goes_from_stored_passes_to_live_ones_and_back(tmp_path, drawn):
    stores, seen = Stores(tmp_path, False), []
    stores.precompute(2)
    client = stores.client(on_pass=lambda name, answer: seen.append(answer.timings.ahead))
    for rows in (4, 3, 3, 4, 4, 4, 3):
        stores.site.ask(client, torch.randn(1, rows, WIDE))
        client.prepare()
    client.precompute(FOUR, 1)
    stores.site.ask(client)
    client.close()
    assert seen == [True, False, False, True, False, False, False, True]
    assert stores.site.ended() == []
    drawn.check()


def test_masks_are_dealt_in_blocks(stores, monkeypatch):
    stores.precompute(70)
    monkeypatch.setattr(delegated_client, "BLOCK_BYTES", 4 * 4 * 4 * (96 + 80 + 48))
    stores.precompute(6)
    blocks = [one["store"]["runs"] for one in messages(stores.site, "server", "client") if "store" in one]
    assert [block or 1 for block in blocks] == [64, 6, 4, 2]
    stores.ask(3)
    assert stores.site.ended() == []


def test_a_long_row_of_passes_is_marked_ahead_and_loses_one_at_most(stores, monkeypatch):
    """From the third pass on, at both sides, while another pass runs. Other shapes in between disturb nothing."""
    stores.precompute(9)
    stores.precompute(2, ((0, 3), (1, 3), (2, 3)))
    takes, take = [], Ledger.take
    monkeypatch.setattr(Ledger, "take", lambda self, *given: takes.append(self.bound) or take(self, *given))
    client, before = stores.client(use_store="only"), []
    for rows in (4, 4, 4, 4, 3, 4, 4):
        before.append(len(client._marking))
        stores.site.ask(client, torch.randn(1, rows, WIDE))
    client.close()
    assert stores.site.ended() == []
    assert before == [0, 0, 0, 1, 1, 1, 0]
    assert takes.count(True) == takes.count(False) == 6 + 1
    stores.ask(3)
    assert [row.ready for row in stores.theirs.ledger.rows()] == [0, 1]


@pytest.mark.parametrize("change", ["another server", "another dealer", "another model", "another client", "rows"])
def test_masks_are_for_one_server_dealer_model_client_and_sequence(stores, change, monkeypatch):
    """None of another's is proposed, or taken."""
    stores.precompute(2)
    options: dict[str, Any] = {}
    if change == "another server":
        monkeypatch.setattr(stores.site, "wrapped", certified)
    elif change == "another dealer":
        options = {"dealt_by": "elsewhere:7444", "own": None}
    elif change == "another client":
        options = {"server": {"client_id": "mallory"}}
    elif change == "another model":
        site = stores.site
        site.manifest = replace(site.manifest, kept="0d" * 32)
        site.weights = {role: replace(weights, manifest=site.manifest) for role, weights in site.weights.items()}
    with pytest.raises(StoreError, match=r"holds no masks for [34] rows"):
        stores.ask(1, rows=3 if change == "rows" else 4, **options)
    assert stores.left == ((2, 1) if change == "another client" else (2, 2))
    assert stores.site.ended() == []


def certified(me: str, peer: str, end: Any) -> Any:
    class Certificate:
        fingerprint = "5e" * 32

    if peer == "server":
        end.certificate = Certificate()
    return end


def test_a_copied_store_discards_all_and_the_first_goes_on(stores, tmp_path):
    stores.precompute(3)
    shutil.copytree(tmp_path / "client", tmp_path / "copy")
    copy = PreprocessingStore(tmp_path / "copy", bound=True)
    with pytest.raises(StoreError, match="holds no masks"):
        stores.ask(1, store=copy)
    assert copy.left() == 0
    stores.ask(3)
    assert stores.site.ended() == []


def test_a_restored_store_sends_no_mask_again_to_a_server_that_takes_all_again(stores, tmp_path):
    """The server's ledger is put back, too: it lies, or was restored as well."""
    stores.precompute(3)
    for name in ("client", "server"):
        shutil.copytree(tmp_path / name, tmp_path / f"{name}-copy")
    stores.ask(2)
    for name in ("client", "server"):
        shutil.rmtree(tmp_path / name)
        shutil.copytree(tmp_path / f"{name}-copy", tmp_path / name)
    assert stores.left == (3, 3)
    with pytest.raises(StoreError, match="holds no masks"):
        stores.ask(1)
    assert stores.site.ended() == []


class Crash(Exception):
    """The process ends here."""


@pytest.mark.parametrize("when", ["before the mark", "behind the mark", "asked", "in a pass"])
def test_a_client_that_is_killed_loses_a_pass_and_uses_none_twice(stores, monkeypatch, when):
    stores.precompute(3)
    client = stores.client(use_store="only")

    def crash(*given: Any, **options: Any) -> Any:
        raise Crash

    take = Ledger.take

    def taking(self: Ledger, *given: Any) -> Entry | None:
        return crash() if when == "before the mark" else take(self, *given) and crash()

    with monkeypatch.context() as patch:
        if when.endswith("mark"):
            patch.setattr(Ledger, "take", taking)
        elif when == "asked":
            patch.setattr(delegated_client, "receive_expected", crash)
        else:
            patch.setattr(client.server, "recv", crash)
        with pytest.raises((Crash, PeerError)):
            stores.site.ask(client)
    stores.site.vanish("client")
    left = 3 if when == "before the mark" else 2
    assert stores.left[1] == left
    stores.ask(left)
    with pytest.raises(StoreError, match="holds no masks"):
        stores.ask(1)
    stores.site.ended()


@pytest.mark.parametrize("lie", ["missing", "spent", "taken twice", "far ahead"])
def test_a_server_that_lies_about_its_store_gets_no_mask_twice(stores, monkeypatch, lie):
    """It says that it lacks what it has taken, or takes what it has given away: the client has marked it."""
    stores.precompute(4)
    lie_in_the_server(lie, monkeypatch)
    client = stores.client(use_store="only")

    def ask_all() -> None:
        for _ in range(5):
            stores.site.ask(client)

    with pytest.raises((StoreError, PeerDeviated)):
        ask_all()
    client.close()
    asked = [tuple(one["store"].items()) for one in messages(stores.site, "server", "client") if "store" in one]
    assert len(asked) == len(set(asked)) >= 1
    stores.site.ended()


def lie_in_the_server(lie: str, monkeypatch: Any) -> None:
    take, kept = DelegatedServer._take, []

    def lying(self: Any, number: int, ref: Any, sequence: Any) -> Any:
        if lie == "taken twice":
            if not kept:
                kept.append(take(self, number, ref, sequence))
            return kept[0]
        dealt = take(self, number, ref, sequence)
        if lie == "spent":
            self.client.send_message({"spent": number, "what": "it is gone"})
        else:
            following = ref.number + (1 if lie == "missing" else 2**40)
            self.client.send_message({"missing": ref.number, "known": True, "next": following})
        return None if dealt else dealt

    monkeypatch.setattr(DelegatedServer, "_take", lying)


def counts(store: PreprocessingStore) -> list[tuple[int, int, int, int]]:
    return [(row.ready, row.used, row.skipped, row.broken) for row in store.ledger.rows()]


def test_passes_that_the_server_has_no_more_are_skipped_and_counted(stores):
    stores.precompute(6)
    (session,) = (row.session for row in stores.theirs.ledger.rows())
    for number in (0, 1, 3):
        stores.theirs.ledger.take(session, number)
    stores.ask(2)
    assert counts(PreprocessingStore(stores.root / "client")) == [(1, 2, 3, 0)]
    assert set((stores.root / "client" / "keys").read_bytes()[: 5 * 32]) == {0}
    stores.ask(1)
    assert stores.site.ended() == []


@pytest.mark.parametrize("party", ["server", "client"])
def test_the_other_store_is_deleted(stores, party):
    """A session that the server does not know is left alone, but for the mask that was marked for it."""
    stores.precompute(3)
    shutil.rmtree(stores.root / party)
    stores.theirs = stores.server["store"] = PreprocessingStore(stores.root / "server")
    with pytest.raises(StoreError, match="holds no masks"):
        stores.ask(1)
    stores.precompute(2)
    stores.ask(2)
    mine = counts(PreprocessingStore(stores.root / "client"))
    assert mine == ([(1, 0, 2, 0), (0, 2, 0, 0)] if party == "server" else [(0, 2, 0, 0)])
    assert [row[1] for row in counts(stores.theirs)] == ([2] if party == "server" else [0, 2])
    assert stores.site.ended() == []


@pytest.mark.parametrize("how", ["killed", "disk full"])
def test_passes_whose_keys_the_client_did_not_keep_are_swept_away(stores, monkeypatch, how):
    stores.precompute(1)
    add, fault = Ledger.add, StoreError("disk", "is full") if how == "disk full" else Crash()

    def failing(self: Ledger, entry: Entry) -> None:
        if self.bound and entry.number == 1:
            raise fault
        add(self, entry)

    client = stores.client()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", failing)
        with pytest.raises(type(fault)):
            client.precompute(FOUR, 3)
    if how == "killed":
        stores.site.vanish("client")
    else:
        stores.site.ask(client)  # the session goes on
        client.close()
    stores.site.ended()
    stores.theirs.sweep(grace=0)
    assert [row[2] for row in counts(stores.theirs)] == [0, 3]
    assert len(list(stores.theirs.folder.glob("*/*"))) == stores.left[0]
    if how == "killed":
        stores.ask(1)
    with pytest.raises(StoreError, match="holds no masks"):
        stores.ask(1)
    assert counts(PreprocessingStore(stores.root / "client")) == [(0, 1, 0, 0), (0, 0, 1, 0)]


def test_a_busy_server_gets_the_same_pass_again_and_no_mask_twice(stores):
    """No number of the masks was sent before it was ready."""
    stores.precompute(2)
    gate = Turnstile([True, True, False, True])
    client = stores.client(use_store="only", server={"admission": gate})
    answered = refused = 0
    while answered < 2:
        try:
            stores.site.ask(client)
            answered += 1
        except SlotsBusy:
            refused += 1
    client.close()
    assert (answered, refused, stores.left) == (2, 3, (0, 0))
    assert stores.site.ended() == []


@pytest.mark.parametrize("harm", ["missing", "damaged", "of another size"])
def test_a_bad_file_loses_one_pass(stores, harm, monkeypatch):
    stores.precompute(3)
    path = sorted(stores.theirs.folder.glob("*/*"))[0]
    if harm == "missing":
        path.unlink()
    elif harm == "damaged":
        path.write_bytes(bytes(path.stat().st_size))
    else:
        fetch = PreprocessingStore.fetch
        monkeypatch.setattr(
            PreprocessingStore, "fetch", lambda self, entry: fetch(self, entry) if entry.number else b""
        )
        monkeypatch.setattr(DelegatedServer, "_size", size_of_half(stores))
    stores.ask(2 if harm != "of another size" else 0)
    if harm == "of another size":
        with pytest.raises(StoreError, match="holds no masks"):
            stores.ask(1)
    assert stores.site.ended() == []


def size_of_half(stores: Stores) -> Any:
    return lambda self, sequence: (
        corrections_bytes(stores.site.weights["server"].sizes, sequence, stores.site.manifest.ring) // 2
    )


def test_a_server_stores_no_more_than_it_has_room_for(stores):
    size = corrections_bytes(stores.site.weights["server"].sizes, FOUR, stores.site.manifest.ring)
    stores.theirs.limit_bytes = 2 * size + size // 2
    client = stores.client()
    client.precompute(FOUR, 2)
    with pytest.raises(StoreError, match=r"server: would hold more than .*kept 0 of 2"):
        client.precompute(FOUR, 2)
    assert client.kept == 2
    stores.site.ask(client)  # the session goes on
    client.close()
    stores.server = {"client_id": "alice"}
    again = stores.client()
    with pytest.raises(StoreError, match="server: keeps no store"):
        again.precompute(FOUR, 1)
    again.close()
    assert stores.site.ended() == []


def test_own_masks_are_nobody_elses(tmp_path):
    """Neither seed nor keys leave this side: there is no dealer, and no other party hears a key of the store."""
    stores = Stores(tmp_path, True)
    stores.precompute(2)
    keys = (tmp_path / "client" / "keys").read_bytes()
    stores.ask(2)
    assert "dealer" not in stores.site.ends
    sent = b"".join(payload for payloads in stores.site.received.values() for payload in payloads)
    for key in (keys[:32], keys[32:64]):
        assert any(key)
        assert key not in sent
        assert key.hex().encode() not in sent
    stores.site.close()


def test_both_sides_vouch_for_the_same_bytes(tmp_path):
    """Also of corrections that the client itself has sent."""
    make_certificates(tmp_path / "certificates")
    stores = Stores(tmp_path, True)
    stores.server["signer"] = Signer(tmp_path / "certificates", "server")
    client = stores.client()
    client.precompute(FOUR, 2)
    stores.site.ask(client)
    mine, (server,) = client.vouched()
    theirs = server.statement.facts[0]
    client.close()
    assert sorted((row.kind, row.sent, row.received) for row in mine.bytes) == sorted(
        (row.kind, row.received, row.sent) for row in theirs.bytes
    )
    size = corrections_bytes(stores.site.weights["server"].sizes, FOUR, stores.site.manifest.ring)
    assert [row.sent for row in mine.bytes if row.kind == "correlations"] == [2 * size]
    assert (mine.queries, mine.passed, mine.weights) == (1, True, theirs.weights)
    stores.site.close()


def test_wrong_corrections_are_found(stores):
    stores.site.with_weights("dealer", lambda integers: integers[1].add_(1))
    if stores.own is not None:
        stores.own = stores.site.weights["dealer"]
    stores.precompute(1)
    with pytest.raises(PeerDeviated, match="has sent a wrong product"):
        stores.ask(1)
    (error,) = stores.site.ended()
    assert isinstance(error, PeerGone)


def test_the_masks_of_a_second_sequence_need_another_session(stores):
    client = stores.client()
    client.precompute(FOUR, 1)
    with pytest.raises(StoreError, match="this session is in it already; start a new session"):
        client.precompute(((0, 2), (1, 2), (2, 2)), 1)
    client.close()
    assert stores.site.ended() == []


def test_storing_goes_on_after_a_busy_dealer_or_server(tmp_path, drawn):
    for party in ("server", "dealer"):
        stores = Stores(tmp_path / party, False)
        busy = {"admission": Turnstile([True, False, True], party=party)}
        client = stores.client(**({"server": busy} if party == "server" else {"dealer": busy}))
        refused = 0
        while client.kept < 3:
            try:
                client.precompute(FOUR, 3 - client.kept if client.kept else 1)
            except SlotsBusy:
                refused += 1
        client.close()
        assert (refused, stores.left) == (2, (3, 3))
        stores.ask(3)
        assert stores.site.ended() == []
    drawn.check()
