"""Queries one after the other, made ahead, refused, waiting: the session goes on, and every answer is right."""

from __future__ import annotations

import threading

import pytest
from blindformer.models.program.pricing import price
from blindformer.parties.session.messages import LimitReached, SlotsBusy
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.protocols.errors import PeerError, PeerGone, PeerProtocolError
from blindformer.tests.parties.session.site import Site, Turnstile
from blindformer.tests.patience import PATIENCE


def test_answers_are_right_and_cost_the_price(site, case):
    declared = price(case.program)
    with site.client() as party:
        for _ in range(2):
            timings = site.ask(party).timings
            assert (timings.rounds, timings.online.sent, timings.online.received) == (
                declared.rounds, declared.up, declared.down
            )  # fmt: skip
            assert timings.offline_bytes == declared.offline_bytes
        assert party.setup_bytes == declared.setup_bytes
    site.end()
    assert [number for number, _ in site.answered] == [0, 1]


@pytest.mark.parametrize("announced", [[True] * 3 + [False], [True, False, True, False], [False] * 4, [True] * 4])
def test_the_next_query_is_made_ahead_where_it_is_announced(site, announced):
    """Also when the last one that was announced never comes."""
    with site.client() as party:
        for more in announced:
            site.ask(party, more)
    site.end()
    assert [number for number, _ in site.answered] == [0, 1, 2, 3]


def test_several_sessions_at_once(case):
    site = Site(case)

    def session() -> None:
        with site.client() as party:
            for more in (True, True, False):
                site.ask(party, more)

    for number in range(4):
        site.start(session, f"client {number}")
    site.end()
    assert len(site.answered) == 12


@pytest.mark.parametrize("more", [False, True])
def test_a_busy_server_says_when_and_the_session_goes_on(site, more, tmp_path):
    """Whether or not the refused query was made ahead; and no correlation is made, or noted, twice."""
    gate = Turnstile([1, 0, 1, 1])
    site.store, mine = PreprocessingStore(tmp_path / "server"), PreprocessingStore(tmp_path / "client")
    with site.client(server={"admission": gate}, store=mine) as party:
        for times in (1, 2, 0):
            for _ in range(times):
                with pytest.raises(SlotsBusy, match=r"server: is busy \(the queue is full\); ask again in 7.5 seconds"):
                    site.ask(party, more)
            site.ask(party, more)
    site.end()
    assert [number for number, _ in site.answered] == [0, 1, 2]
    assert gate.most == 1
    for store in (site.store, mine):
        numbers = [number for _, _, number in store.ledger.audit()]
        assert numbers[:3] == [0, 1, 2]
        assert len(numbers) <= 4  # the one that was announced, and did not come


def test_who_waits_in_the_queue_hears_of_it(site):
    slot_freed, heard = threading.Event(), []

    def waiting(message: dict) -> None:
        heard.append(message)
        if len(heard) == 3:
            slot_freed.set()

    with site.client(server={"admission": Turnstile(hold=slot_freed)}, waiting=waiting) as party:
        site.ask(party)
    site.end()
    assert heard[:3] == [{"queued": 3}] * 3


def test_who_waits_for_the_dealer_hears_signs_of_life(case):
    """The dealer takes longer than the client's patience, which is told often enough that the server lives."""
    dealer_may_go, heard = threading.Event(), []

    class Slow(Site):
        def connect(self, a, b):
            pair = super().connect(a, b)
            if (a, b) == ("server", "dealer"):
                send = pair[1].send

                def late(data) -> None:
                    dealer_may_go.wait(PATIENCE)
                    send(data)

                pair[1].send = late
                pair[0].timeout = 60
            return pair

    def waiting(message: dict) -> None:
        heard.append(message)
        if len(heard) == 4:  # longer than the client would have waited in silence
            dealer_may_go.set()

    site = Slow(case, timeout=3.0)
    with site.client(waiting=waiting) as party:
        site.ask(party)
    site.end()
    assert {"waiting": "correlations"} in heard


def test_who_dies_while_waiting_gives_the_place_back(site):
    gate = Turnstile(hold=threading.Event())
    queued = threading.Event()

    def ask() -> None:
        with site.client(server={"admission": gate}, waiting=lambda message: queued.set()) as party:
            clients.append(party)
            with pytest.raises(PeerGone):
                site.ask(party)

    clients: list = []
    site.start(ask, "client")
    assert queued.wait(PATIENCE)
    clients[0].server.interrupt()
    errors = site.errors()
    assert {type(error) for error in errors} == {PeerGone}
    assert {error.party for error in errors if isinstance(error, PeerGone)} == {"client", "server"}
    assert gate.inside == 0


def test_a_query_out_of_order_ends_the_session(site):
    with site.client() as party:
        site.ask(party)
        party.number = 0
        with pytest.raises(PeerError, match="out of order"):
            site.ask(party)
    assert any(isinstance(error, PeerProtocolError) and error.party == "client" for error in site.errors())


def test_when_the_dealer_dies_both_others_know_who_it_was(site):
    with site.client() as party:
        site.ask(party)
        for channel in site.channels:
            if channel.peer == "server" and channel is not party.server:
                channel.close()
        with pytest.raises(PeerError, match="dealer: closed the connection"):
            site.ask(party)
    assert {error.party for error in site.errors() if isinstance(error, PeerError)} <= {"dealer", "server"}


class Counter:
    """Grants so many queries, and counts all that it is asked for."""

    def __init__(self, most: int) -> None:
        self.most, self.asked = most, 0

    def __call__(self, tokens: int) -> None:
        self.asked += tokens
        if self.asked > self.most:
            raise LimitReached("server", self.most, 3600.0, 90.0)


@pytest.mark.parametrize("more", [True, False])
def test_a_query_counts_before_it_is_computed_and_beyond_the_limit_none_is(site, more):
    """One that is broken off has counted, one that a busy server turned away has not."""
    counter = Counter(3)
    with site.client(server={"count": counter, "admission": Turnstile([1, 1])}) as party:
        for _ in range(2):
            with pytest.raises(SlotsBusy):
                party.query(site.case.client)
        assert counter.asked == 0
        site.ask(party, more)
        site.ask(party)
    with site.client(server={"count": counter}) as party:
        party.server.send_message({"query": 0, "store": None, "more": False, "then": None})
        assert "ready" in party._expect("ready")
        assert counter.asked == 3
        party.server.send_message({"abort": 0})
        party.number += 1
        for _ in range(2):
            with pytest.raises(
                LimitReached, match=r"the 3 texts .* may ask in 1 hour; ask again in 1.5 minutes"
            ) as caught:
                party.query(site.case.client)
            assert (caught.value.each, caught.value.period, caught.value.retry_after) == (3, 3600.0, 90.0)
    site.end()
    assert len(site.answered) == 2


def test_correlations_made_ahead_count_when_they_are_used(case, tmp_path):
    """And once, if the server has lost some of them and the client asks again with others."""
    counter, site = Counter(3), Site(case, store=PreprocessingStore(tmp_path / "server"))
    mine = PreprocessingStore(tmp_path / "client")
    with site.client(store=mine, server={"count": counter}) as party:
        party.precompute(3)
    assert counter.asked == 0
    entry = next(row.session for row in site.store.ledger.rows())
    site.store.ledger.take(entry, 0)
    with site.client(store=mine, server={"count": counter}) as party:
        site.ask(party)
    site.end()
    assert counter.asked == 1
