"""A second server in the client's seat, and a data owner who only splits and adds: four parties as threads."""

from __future__ import annotations

import contextlib
import json
import threading

import pytest
import torch
from blindformer.models.compile import decode_outputs
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.models.program.two_server import for_two_servers, owner_traffic
from blindformer.parties.session.helper_topology import HelperParty, OwnerShares
from blindformer.parties.session.messages import SlotsBusy
from blindformer.parties.session.rendezvous_two import part_of
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.errors import PeerError, PeerProtocolError, PeerRefused
from blindformer.tests.models.conftest import make
from blindformer.tests.parties.session.site import ROLES, Site, Turnstile, assert_fresh
from blindformer.tests.protocols.programs import Case, handed_over
from blindformer.tests.shared.memory import is_message, memory_pair
from hypothesis import given, settings
from hypothesis import strategies as st

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def item():
    """A classifier of two layers, its compiled form and its calibration batches."""
    return make("bert-labels", "fast")


@pytest.fixture
def site(case):
    return Site(handed_over(case))


def exactly(item, batch) -> torch.Tensor:
    compiled = item.compiled
    values = {**compiled.encode_inputs(batch), **compiled.weights, **compiled.constants}
    return decode_outputs(compiled.program, interpret(compiled.program, ClearEngine(values)).outputs)["logits"]


# --- answers ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("helped", [False, True])
def test_a_model_s_answers_are_right_whoever_takes_part(item, helped):
    """Roundings are random, by one unit at a rescale: all are as far from the exact fixed point."""
    case = Case(item.compiled.program, {}, item.compiled.weights, item.compiled.constants)
    site = Site(handed_over(case) if helped else case)
    with site.owner() if helped else site.client() as party:
        for number, batch in enumerate(item.batches[:3]):
            answer = party.query(item.compiled.encode_inputs(batch), more=number < 2)
            logits = decode_outputs(site.case.program, answer.outputs)["logits"]
            assert float((logits - exactly(item, batch)).abs().max()) < 2e-3
    site.end()


def test_an_owner_s_work_is_small(item, owner_of):
    """It sends its shares and a seed, it receives two shares of the answer: no masked weights, no rounds."""
    case = handed_over(Case(item.compiled.program, {}, item.compiled.weights, item.compiled.constants))
    site, traffic = Site(case), owner_traffic(case.program)
    owner = owner_of(site)
    answer = owner.query(item.compiled.encode_inputs(item.batches[0]))
    assert owner.setup_bytes == 0
    tensors = {key: sum(len(p) for p in payloads if not is_message(p)) for key, payloads in site.received.items()}
    assert tensors["server", "owner"] == traffic.to_server
    assert tensors["helper", "owner"] == 0
    assert tensors["owner", "helper"] == tensors["owner", "server"] == traffic.from_each
    assert ("owner", "dealer") not in tensors
    assert answer.timings.online.sent < traffic.to_server + 400  # and a few short messages
    assert answer.timings.rounds == price(case.program).rounds
    assert answer.others["helper_online_s"] > 0


def test_what_each_party_receives_is_uniform_and_fresh_in_every_query(item, owner_of):
    site = Site(handed_over(Case(item.compiled.program, {}, item.compiled.weights, item.compiled.constants)))
    owner = owner_of(site)
    for _ in range(2):
        owner.query(item.compiled.encode_inputs(item.batches[0]))
    assert_fresh(site)
    messages = [json.loads(p) for p in site.received["helper", "owner"]]
    seeds = [message["seed"] for message in messages if "seed" in message]
    assert len(set(seeds)) == 2
    assert all(set(message) <= {"query", "more", "seed"} for message in messages)


def test_the_dealer_hears_of_no_owner(site, owner_of):
    """To the dealer, the helper is a client."""
    site.ask(owner_of(site))
    assert {sender for receiver, sender in site.received if receiver == "dealer"} == {"client", "server"}


# --- a server that is full -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("party", ["server", "helper"])
def test_a_query_that_is_turned_away_has_sent_nothing_and_may_be_another(site, owner_of, party):
    """A share that a server holds already must never meet a second value under the same seed."""
    owner = owner_of(site, slots={party: Turnstile([1, 1], party=party)})
    for shift in (1, 2):
        with pytest.raises(SlotsBusy, match=f"{party}: is busy .the queue is full.; ask again in 7.5 seconds") as busy:
            owner.query({name: value + shift for name, value in site.case.inputs.items()})
        assert (busy.value.party, busy.value.retry_after) == (party, 7.5)
    assert site.received["server", "owner"] == []
    assert all("seed" not in json.loads(p) for p in site.received["helper", "owner"])
    site.ask(owner)


@pytest.mark.parametrize("party", ["server", "helper"])
def test_who_waits_hears_that_the_others_live(case, owner_of, party):
    """Longer than the timeout: a silence would be taken for death."""
    site, slot_freed, heard = Site(handed_over(case), timeout=3.0), threading.Event(), []

    def waiting(message: dict) -> None:
        heard.append(message)
        if len(heard) == 4:  # longer than the owner would have waited in silence
            slot_freed.set()

    site.ask(owner_of(site, slots={party: Turnstile(hold=slot_freed)}, waiting=waiting))
    assert len(heard) >= 4
    assert {"waiting": 3} in heard


# --- parties that leave ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("moment", ["asked", "shares wait", "shares sent"])
@pytest.mark.parametrize("party", ["helper", "server", "owner"])
def test_whoever_vanishes_the_others_end_and_say_who_it_was(site, owner_of, party, moment):
    owner = owner_of(site)
    send = owner._send_shares

    def leaving(*shares) -> None:
        if moment == "shares sent":
            send(*shares)
        site.vanish(party)
        if moment == "shares wait":
            send(*shares)

    if moment == "asked":
        site.vanish(party)
    else:
        owner._send_shares = leaving
    with pytest.raises(PeerError) as failure:
        site.ask(owner)
    site.join()
    if party != "owner":
        assert party in str(failure.value)
    errors = dict(site.failures)
    for other in {"helper", "server"} - {party}:
        assert isinstance(errors[other], PeerError), repr(errors[other])
        assert ROLES.get(party, party) in str(errors[other])


def test_a_dealer_that_vanishes_is_named_to_the_owner(site, owner_of):
    owner = owner_of(site)
    site.vanish("dealer")
    with pytest.raises(PeerError, match="dealer"):
        site.ask(owner)


# --- peers that do not follow the protocol ---------------------------------------------------------------------------
def test_a_query_number_is_used_once(site, owner_of):
    owner = owner_of(site)
    site.ask(owner)
    owner.helper.send_message({"query": 0, "more": False})
    with pytest.raises(PeerError, match="out of order"):
        owner._expect(owner.helper, "ready", 1)


@pytest.mark.parametrize("seed", [None, "00", 7, "zz" * 32, "00" * 16, ["00" * 32]])
def test_a_seed_that_is_none_is_refused(site, owner_of, seed):
    owner = owner_of(site)
    owner.helper.send_message({"query": 0})
    owner._expect(owner.helper, "ready", 0)
    owner.helper.send_message({"seed": seed})
    with pytest.raises(PeerError, match="has no place here"):
        owner._expect(owner.helper, "answer", 0)


@pytest.mark.parametrize("what", ["number", "size", "no tensor"])
def test_shares_that_are_none_are_refused(site, owner_of, what):
    owner = owner_of(site)
    owner.helper.send_message({"query": 0})
    owner._expect(owner.helper, "ready", 0)
    owner.helper.send_message({"seed": "00" * 32})
    owner.server.send_message({"query": 1 if what == "number" else 0})
    if what != "number":
        owner.server.send(b"short") if what == "size" else owner.server.send_message({"query": 0})
    with pytest.raises(PeerError):
        owner._receive(owner.server, 0)
    owner.close()
    site.join()
    error = dict(site.failures)["server"]
    assert isinstance(error, PeerProtocolError)
    assert error.party == "client"


WORDS = st.sampled_from(["query", "seed", "more", "bye", "answer", "ready", "error", "waiting", "x"])
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8)
)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(WORDS, v, max_size=3), max_leaves=6)


class Asked(Exception):
    """A query got as far as the session."""


class Session:
    """In place of a client's session: no query is answered."""

    def __init__(self, program) -> None:
        self.program, self.setup_bytes, self.waiting = program, 0, None
        self.server, self.other = memory_pair("helper", "server")

    def agree(self, *more):
        raise Asked


@given(st.dictionaries(WORDS, VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_message_of_an_owner_is_a_query_a_goodbye_or_a_typed_error(message):
    program = for_two_servers(make("bert-labels", "fast").compiled.program)
    for run in (
        lambda channel: HelperParty(channel, Session(program)).serve(idle=5),
        lambda channel: OwnerShares(channel, program).shares(),
    ):
        mine, owner = memory_pair("helper", "client", timeout=5)
        owner.send_message(message)
        owner.close()
        with contextlib.suppress(PeerError, Asked):
            run(mine)


def test_a_client_has_no_place_where_a_helper_computes_and_the_other_way_round(item):
    compiled, moved = item.compiled.program, for_two_servers(item.compiled.program)
    for peer, program, part in (
        ("client", compiled, "party"),
        ("client", moved, "owner"),
        ("helper", moved, "party"),
    ):
        channel, _ = memory_pair("server", peer)
        assert part_of(channel, program) == part
    channel, other = memory_pair("server", "helper")
    with pytest.raises(PeerRefused, match="is a helper, and this program's data owner takes part itself"):
        part_of(channel, compiled)
    with pytest.raises(PeerRefused, match="choose the same topology"):
        other.recv_message()
