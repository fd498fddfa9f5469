"""Sessions without a dealer: the queries, the messages of the online phase and the store of others; nobody else."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("nacl")
pytest.importorskip("seal")
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.pricing import price
from blindformer.parties.session.messages import SlotsBusy
from blindformer.parties.session.pair_corrections import check_pair, stored_weights
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.protocols.errors import BlindformerError
from blindformer.protocols.kernels import library
from blindformer.protocols.pair.declared import SessionCosts, setup_traffic
from blindformer.tests.parties.session.site import Site, Turnstile
from blindformer.tests.protocols.programs import Data, Draft, hidden

pytestmark = pytest.mark.skipif(library.library is None, reason="homomorphic products need C kernels")


@pytest.fixture
def site(case, tmp_path):
    site = Site(case, store=PreprocessingStore(tmp_path / "server"), dealt=False)
    yield site
    for channel in site.channels:
        channel.close()


@pytest.fixture
def mine(tmp_path) -> PreprocessingStore:
    return PreprocessingStore(tmp_path / "client")


def test_answers_are_right_and_cost_the_price(site, case):
    """Online as with a dealer; before it what is declared, and the first query also the weights."""
    declared, costs, progress = price(case.program), SessionCosts(), []
    with site.client() as party:
        assert party.setup_bytes == setup_traffic().to_client + setup_traffic().to_server
        for _ in range(2):
            answer = party.query(case.client, lambda *step: progress.append(step))
            timings = answer.timings
            assert (timings.rounds, timings.online.sent, timings.online.received) == (
                declared.rounds, declared.up, declared.down
            )  # fmt: skip
            traffic = costs.of(Correlations(case.program).pair_walk({})).total
            steps = [(done, total) for phase, done, total in progress if phase == "correlations"]
            assert steps[-1] == (traffic.to_client + traffic.to_server,) * 2
            assert 0 <= timings.offline_bytes - steps[-1][1] < 1000  # messages beside
        noted = party.notes.correlations
    site.end()
    assert noted.received > setup_traffic().to_client
    assert [number for number, _ in site.answered] == [0, 1]


def test_correlations_made_ahead_are_used_once_and_by_sessions_of_this_mode(site, mine, case):
    with site.client(store=mine) as party:
        party.precompute(2)
        commitment = party.weights.commitment
    assert (site.store.left(), mine.left()) == (2, 2)
    assert mine.ledger.sessions(case.program.hash(), stored_weights(commitment))
    assert not mine.ledger.sessions(case.program.hash(), commitment)
    with site.client(store=mine) as party:
        timings = [site.ask(party, more=True).timings, site.ask(party).timings]
    site.end()
    assert [(one.ahead, one.offline_bytes) for one in timings] == [(True, 0)] * 2
    used = [{(session, number) for _, session, number in store.ledger.audit()} for store in (site.store, mine)]
    assert used[0] == used[1]
    assert len(used[0]) == 2


@pytest.mark.parametrize("more", [False, True])
def test_one_session_asks_live_and_makes_ahead_in_any_order(site, mine, more):
    with site.client(store=mine) as party:
        ahead = [site.ask(party, more).timings.ahead]
        party.precompute(1)
        ahead += [site.ask(party, more).timings.ahead for _ in range(2)]
    site.end()
    assert ahead == [False, True, False]


def test_a_busy_server_says_when_and_the_session_goes_on(site, mine):
    with site.client(server={"admission": Turnstile([1, 0, 1])}, store=mine) as party:
        for _ in range(2):
            with pytest.raises(SlotsBusy):
                party.query({})
            site.ask(party)
    site.end()


def test_tables_by_keys_are_made_by_both(mine, tmp_path):
    d, data = Draft(), Data(2)
    x, table = hidden(d, data, 20, bits=10), data.ints(128, 1, bits=20)
    case = d.case(d("lookup", x, d.constant(table), start=0, bits=11, low=4, drop=0, width=32))
    cell = (d.values[x] & (1 << 11) - 1) >> 4
    site = Site(case, store=PreprocessingStore(tmp_path / "tables"), dealt=False)
    with site.client(store=mine) as party:
        party.precompute(1)
        for ahead in (True, False):
            answer = party.query(case.client)
            (result,) = answer.outputs.values()
            assert ((result == table[cell, 0]) | (result == table[(cell + 1) % 128, 0])).all()
            assert answer.timings.ahead is ahead
    site.end()


def test_what_two_parties_alone_cannot_make_is_one_line(compiled):
    with pytest.raises(BlindformerError, match="take a dealer; leave --dealer none out"):
        check_pair(compiled.program)
    with pytest.raises(BlindformerError, match="made on processors"):
        check_pair(compiled.program, torch.device("cuda"))
