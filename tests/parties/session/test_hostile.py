"""Peers that say anything at any time: a typed error that names them, and nothing else."""

from __future__ import annotations

import pytest
from blindformer.parties.session.client import ClientParty
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.parties.session.dealer import DealerParty, MemoryPrograms, left_for, receive_seed
from blindformer.parties.session.meeting import my_hello
from blindformer.parties.session.seeds import MemorySeeds
from blindformer.parties.transport.memory import memory_pair
from blindformer.protocols.errors import BlindformerError, PeerError
from blindformer.tests.parties.session.site import Site, small_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CASE = small_case()
PRICED = Site(CASE).served
PRICED.prepare()

NAMES = st.sampled_from([
    *("query", "spool", "more", "then", "session", "number", "live", "precompute", "bye", "go", "abort", "waiting"),
    *("queued", "kept", "seed", "need", "program", "weights", "dealing", "deal", "dealt", "busy", "why", "party"),
    *("taken", "missing", "known", "next", "spent", "ready", "done", "stored", "full", "error", "kind", "what", "stop"),
])  # fmt: skip
LEAVES = (
    st.none() | st.booleans() | st.integers(-2, 3) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8) | st.sampled_from(["0f" * 16, "live", "program", "weights"])
)  # fmt: skip
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=6
)
MESSAGES = st.dictionaries(NAMES, VALUES, max_size=4)
FRAMES = st.binary(max_size=64) | st.sampled_from([0, 2, 16, 48, 96]).map(bytes)
STEPS = st.lists(MESSAGES | FRAMES, min_size=1, max_size=6)

HARD = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def say(channel, steps) -> None:
    """All at once, then leave."""
    for step in steps:
        if isinstance(step, dict):
            channel.send_message(step)
        else:
            channel.send(step)
    channel.close()


@HARD
@given(STEPS)
def test_a_client_that_says_anything(steps):
    site = Site(CASE, timeout=5)
    site.served = PRICED
    ours, theirs = memory_pair("server", "client", 5)
    say(theirs, [bytes(2), *steps])  # it has all weights, it says
    site.serve(ours, "0f" * 16)
    assert all(isinstance(error, BlindformerError) for error in site.errors())


@HARD
@given(STEPS)
def test_a_server_that_says_anything(steps):
    ours, theirs = memory_pair("client", "server", 5)
    masked = PRICED.masked
    say(theirs, [{"weights": masked.id, "spool": True}, masked.catalogue(), *map(masked.packed, masked.keys), *steps])
    party = ClientParty(CASE.program, CASE.constants, ours, lambda seed: None)

    def converse() -> None:
        party.set_up()
        for more in (True, False):
            party.query(CASE.client, more=more)

    with pytest.raises(BlindformerError):
        converse()
    party.close()


@HARD
@given(STEPS, st.sampled_from(["before", "weights", "query"]))
def test_a_dealer_that_says_anything(steps, moment):
    """To a server that a good client has asked for a query."""
    site = Site(CASE, timeout=5)
    site.served = PRICED
    honest = {"before": [], "weights": [{"need": "weights"}], "query": [{"need": "weights"}, {"dealing": True}]}

    def dial():
        ours, theirs = memory_pair("server", "dealer", 5)
        say(theirs, [*honest[moment], *steps])
        return ours

    site.dial_dealer = lambda program, session: dial()
    with pytest.raises((PeerError, SlotsBusy)), site.client() as party:
        site.ask(party)
    assert all(isinstance(error, BlindformerError) for error in site.errors())


@HARD
@given(STEPS)
def test_a_server_that_says_anything_to_the_dealer(steps):
    programs, seeds, hello = MemoryPrograms(), MemorySeeds(), my_hello(CASE.program, "server", "0f" * 16)
    programs.put(CASE.program)
    seeds.put("0f" * 16, CASE.program.hash(), bytes(32))
    ours, theirs = memory_pair("dealer", "server", 5)
    say(theirs, [{"seed": "0f" * 32}, bytes(64), *steps])
    with pytest.raises(BlindformerError):
        _until_it_fails(DealerParty(ours, hello.program, left_for(hello, seeds), programs))


def _until_it_fails(party) -> None:
    party.serve()
    raise PeerError("server", "said goodbye", "which is fine")


@HARD
@given(MESSAGES | FRAMES)
def test_a_client_that_says_anything_to_the_dealer(step):
    seeds, hello = MemorySeeds(), my_hello(CASE.program, "client", "0f" * 16)
    ours, theirs = memory_pair("dealer", "client", 5)
    say(theirs, [step])
    with pytest.raises(BlindformerError):
        receive_seed(ours, hello, seeds)
