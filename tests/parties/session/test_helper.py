"""A second server in the client's seat, and a data owner who only splits and adds: four parties as threads."""

from __future__ import annotations

import contextlib
import json
import threading
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from blindformer.models.compile import decode_outputs
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.models.program.two_server import for_two_servers, owner_traffic
from blindformer.parties.local.threads import ThreadParties
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.parties.session.helper.owner_shares import OwnerShares, part_of
from blindformer.parties.session.helper.party import HelperParty
from blindformer.parties.transport.memory import memory_pair
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.errors import (
    PeerError,
    PeerProtocolError,
    PeerRefused,
)
from blindformer.tests.models.conftest import make
from blindformer.tests.parties.four import ROLES, Four
from hypothesis import given, settings
from hypothesis import strategies as st

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def item():
    """A classifier of two layers, its compiled form and its calibration batches."""
    return make("bert-labels", "fast")


@pytest.fixture
def four(item):
    """four(**options): a session that ends with the test."""
    made: list[Four] = []

    def make_four(**options) -> Four:
        made.append(Four(item.compiled, **options))
        made[-1].owner.set_up()
        return made[-1]

    yield make_four
    for each in made:
        each.close()


def exactly(item, batch) -> torch.Tensor:
    compiled = item.compiled
    values = {**compiled.encode_inputs(batch), **compiled.weights, **compiled.constants}
    return decode_outputs(compiled.program, interpret(compiled.program, ClearEngine(values)).outputs)["logits"]


# --- answers ---------------------------------------------------------------------------------------------------------
def test_answers_are_those_of_a_client_that_takes_part(item, four):
    """Roundings are random, by one unit at a rescale: both are as far from the exact fixed point."""
    session, client = four(), ThreadParties(item.compiled)
    try:
        for number, batch in enumerate(item.batches[:3]):
            answer = session.query(item.compiled.encode_inputs(batch), more=number < 2)
            helped = decode_outputs(session.case.program, answer.outputs)["logits"]
            alone = client.query(batch).outputs["logits"]
            expected = exactly(item, batch)
            assert float((helped - expected).abs().max()) < 2e-3
            assert float((alone - expected).abs().max()) < 2e-3
    finally:
        client.close()
    session.close()
    assert session.errors == {}


def test_an_owner_s_work_is_small(item, four):
    """It sends its shares and a seed, it receives two shares of the answer: no masked weights, no rounds."""
    session, traffic = four(), owner_traffic(for_two_servers(item.compiled.program))
    answer = session.query(item.compiled.encode_inputs(item.batches[0]))
    assert session.owner.setup_bytes == 0
    tensors = {key: sum(len(p) for p in payloads if p[:1] != b"{") for key, payloads in session.received.items()}
    assert tensors["server", "owner"] == traffic.to_server
    assert tensors["helper", "owner"] == 0
    assert tensors["owner", "helper"] == tensors["owner", "server"] == traffic.from_each
    assert ("owner", "dealer") not in tensors
    assert answer.timings.online.sent < traffic.to_server + 400  # and a few short messages
    assert answer.timings.rounds == price(session.case.program).rounds
    assert answer.others["helper_online_s"] > 0


def test_what_each_party_receives_is_uniform_and_fresh_in_every_query(item, four):
    session = four()
    sources = item.compiled.encode_inputs(item.batches[0])
    for _ in range(2):
        session.query(sources)
    for receiver, sender in (("server", "owner"), ("owner", "server"), ("owner", "helper"), ("server", "helper")):
        frames = [p for p in session.received[receiver, sender] if p[:1] != b"{"]
        one, other = (b"".join(half) for half in np.array_split(np.array(frames, dtype=object), 2))
        assert one != other
        if len(one) > 4000:
            counts = np.bincount(np.frombuffer(one + other, np.uint8), minlength=256)
            assert ((counts - counts.mean()) ** 2).sum() / counts.mean() < 255 + 8 * (2 * 255) ** 0.5
    messages = [json.loads(p) for p in session.received["helper", "owner"]]
    seeds = [message["seed"] for message in messages if "seed" in message]
    assert len(set(seeds)) == 2
    assert all(set(message) <= {"query", "more", "seed"} for message in messages)


def test_the_dealer_hears_of_no_owner(item, four):
    session = four()
    session.query(item.compiled.encode_inputs(item.batches[0]))
    assert {sender for receiver, sender in session.received if receiver == "dealer"} == {"helper", "server"}


# --- a server that is full -------------------------------------------------------------------------------------------
class Full:
    """Has no room for the first `times` queries. `asked`: how often one wanted a place."""

    def __init__(self, party: str, times: int) -> None:
        self.party, self.times, self.asked = party, times, 0

    @contextmanager
    def slot(self, number, waiting):
        self.asked += 1
        if self.asked <= self.times:
            raise SlotsBusy(self.party, 3.0, "the queue is full")
        yield


@pytest.mark.parametrize("party", ["server", "helper"])
def test_a_query_that_is_turned_away_has_sent_nothing_and_may_be_another(item, four, party):
    """A share that a server holds already must never meet a second value under the same seed."""
    session = four(admission={party: Full(party, 2)})
    for batch in item.batches[:2]:
        with pytest.raises(SlotsBusy, match=f"{party}: is busy .the queue is full.; ask again in 3 seconds") as busy:
            session.query(item.compiled.encode_inputs(batch))
        assert (busy.value.party, busy.value.retry_after) == (party, 3.0)
    assert session.received["server", "owner"] == []
    assert all("seed" not in json.loads(p) for p in session.received["helper", "owner"])
    answer = session.query(item.compiled.encode_inputs(item.batches[2]))
    found = decode_outputs(session.case.program, answer.outputs)["logits"]
    assert float((found - exactly(item, item.batches[2])).abs().max()) < 2e-3


class Slow:
    """Lets a query wait until `event`. `place`: in the queue."""

    def __init__(self, place: int) -> None:
        self.event, self.place = threading.Event(), place

    @contextmanager
    def slot(self, number, waiting):
        while not self.event.wait(0.2):
            waiting(self.place)
        yield


@pytest.mark.parametrize("party", ["server", "helper"])
def test_who_waits_hears_that_the_others_live(item, four, party):
    """Longer than the timeout: a silence would be taken for death."""
    slow = Slow(place=4)
    session = four(admission={party: slow}, timeout=3)

    class Heard(list):
        def append(self, message) -> None:
            super().append(message)
            if len(self) == 4:  # after more than three seconds
                slow.event.set()

    session.owner.waiting = Heard().append
    session.owner.waiting.__self__.clear()
    session.query(item.compiled.encode_inputs(item.batches[0]))
    heard = session.owner.waiting.__self__
    assert len(heard) >= 4
    assert {"waiting": 4} in heard


# --- parties that leave ----------------------------------------------------------------------------------------------
def leaves(session: Four, party: str, moment: str) -> None:
    """Let `party` vanish at a moment of the next query."""
    if moment == "asked":
        session.vanish(party)
        return
    send = session.owner._send_shares

    def then(sources) -> None:
        if moment == "shares wait":
            session.vanish(party)
            send(sources)
        else:
            send(sources)
            session.vanish(party)

    session.owner._send_shares = then


@pytest.mark.parametrize("moment", ["asked", "shares wait", "shares sent"])
@pytest.mark.parametrize("party", ["helper", "server", "owner"])
def test_whoever_vanishes_the_others_end_and_say_who_it_was(item, four, party, moment):
    session = four(timeout=20)
    leaves(session, party, moment)
    with pytest.raises(PeerError) as failure:
        session.query(item.compiled.encode_inputs(item.batches[0]))
    session.join()
    if party != "owner":
        assert party in str(failure.value)
    for other in {"helper", "server"} - {party}:
        assert isinstance(session.errors[other], PeerError), repr(session.errors[other])
        assert ROLES.get(party, party) in str(session.errors[other])


def test_a_dealer_that_vanishes_is_named_to_the_owner(item, four):
    session = four(timeout=20)
    session.vanish("dealer")
    with pytest.raises(PeerError, match="dealer"):
        session.query(item.compiled.encode_inputs(item.batches[0]))


# --- peers that do not follow the protocol ---------------------------------------------------------------------------
def test_a_query_number_is_used_once(item, four):
    session = four()
    session.query(item.compiled.encode_inputs(item.batches[0]))
    session.owner.helper.send_message({"query": 0, "more": False})
    with pytest.raises(PeerError, match="out of order"):
        session.owner._hear(session.owner.helper, "ready", 1)


@pytest.mark.parametrize("seed", [None, "00", 7, "zz" * 32, "00" * 16, ["00" * 32]])
def test_a_seed_that_is_none_is_refused(item, four, seed):
    session = four()
    session.owner.helper.send_message({"query": 0})
    session.owner._hear(session.owner.helper, "ready", 0)
    session.owner.helper.send_message({"seed": seed})
    with pytest.raises(PeerError, match="has no place here"):
        session.owner._hear(session.owner.helper, "answer", 0)


@pytest.mark.parametrize("what", ["number", "size", "no tensor"])
def test_shares_that_are_none_are_refused(item, four, what):
    session = four()
    server = session.owner.server
    session.owner.helper.send_message({"query": 0})
    session.owner._hear(session.owner.helper, "ready", 0)
    session.owner.helper.send_message({"seed": "00" * 32})
    if what == "number":
        server.send_message({"query": 1})
    else:
        server.send_message({"query": 0})
        server.send(b"short") if what == "size" else server.send_message({"query": 0})
    with pytest.raises(PeerError):
        session.owner._receive(server, 0)
    session.owner.close()
    session.join()
    assert isinstance(session.errors["server"], PeerProtocolError)
    assert session.errors["server"].party == "client"


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

    def query(self, sources, more=False):
        raise Asked


@given(st.dictionaries(WORDS, VALUES, max_size=4))
@settings(max_examples=300, deadline=None)
def test_any_message_of_an_owner_is_a_query_a_goodbye_or_a_typed_error(message):
    program = for_two_servers(make("bert-labels", "fast").compiled.program)
    for run in (
        lambda channel: HelperParty(channel, Session(program)).serve(idle=5),
        lambda channel: OwnerShares(channel, program).shares(0),
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
