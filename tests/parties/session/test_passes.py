"""A conversation in a session: what two parties compute, pass by pass, and what a peer may not ask for."""

from itertools import repeat

import pytest
import torch
from blindformer.models.generation.rows import Rows, run_clear
from blindformer.models.program.pricing import price
from blindformer.parties.local import threads
from blindformer.parties.local.threads import ThreadParties
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.parties.session.dealer import DealerParty
from blindformer.parties.session.messages import Ask, Turn
from blindformer.parties.session.passes import passes
from blindformer.parties.session.server import ServerParty
from blindformer.protocols.errors import PeerError, PeerProtocolError
from blindformer.tests.models.generation.conftest import PREFIX, compiled, model, some  # noqa: F401
from blindformer.tests.parties.session.site import Turnstile


@pytest.fixture
def parties(compiled):  # noqa: F811
    with ThreadParties(compiled, timeout=30) as session:
        yield session


def rows_of(parties, told=None):
    return Rows(parties.compiled.program, passes(parties.client, parties.compiled.parts, told), PREFIX)


def test_passes_give_what_clear_gives_and_cost_what_is_declared(parties, compiled):  # noqa: F811
    costs = []

    def told(name, answer):
        costs.append((name, answer.timings.rounds, answer.timings.online.sent, answer.timings.online.received))

    private = rows_of(parties, told)
    clear = Rows(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    text = some(20).tolist()
    for read in (text[:11], text[11:12], text[12:13]):
        torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)
    for rows in (private, clear):  # a rejected draft: other tokens take its rows, with masks of their own
        rows.crop(len(PREFIX) + 12)
    for read in (text[12:16], *([token] for token in text[16:20])):  # correlations made for other rows are dropped
        torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)
    for name, rounds, sent, received in costs:
        declared = price(compiled.program.part(name))
        assert (rounds, sent, received) == (declared.rounds, declared.up, declared.down)


def test_the_same_text_twice_is_sent_under_other_masks(compiled):  # noqa: F811
    text, sent = some(9).tolist(), []
    for _ in range(2):
        with ThreadParties(compiled, timeout=30) as session:
            rows_of(session).read(text)
            sent.append(session.client.states.held["key_0"][0])
    assert not torch.equal(*sent)


@pytest.mark.parametrize(
    ("busy", "announced", "again"),
    [("server", True, False), ("server", False, False), ("dealer", False, True), ("dealer", False, False)],
)
def test_a_pass_that_is_turned_away_is_asked_for_again_or_never(
    compiled,  # noqa: F811
    monkeypatch,
    busy,
    announced,
    again,
):
    """What comes then has masks of its own on both sides, and the integers of a session in which nobody was busy."""
    text, slots = some(14).tolist(), Turnstile(party=busy)
    made = {"server": ServerParty, "dealer": DealerParty}[busy]
    admitted = lambda *given, **options: made(*given, **{**options, "admission": slots})  # noqa: E731
    monkeypatch.setattr(threads, made.__name__, admitted)
    clear = Rows(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    with ThreadParties(compiled, timeout=30) as session:
        private = rows_of(session)
        for rows in (private, clear):
            rows.read(text[:9])
            if not announced:  # the correlations that were made are for another turn
                rows.crop(len(PREFIX) + 8)
        slots.refuse = repeat(True)
        with pytest.raises(SlotsBusy):
            private.read(text[9:10])
        slots.refuse = iter(())
        for read in (text[9:10], text[10:11], text[11:14]) if again else (text[9:13], text[13:14]):
            torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    "turn", [Turn(part="2"), Turn(part="1@64", rows=5), Turn(part="8@64", runs=8)], ids=["a part", "rows", "runs"]
)
def test_a_client_cannot_ask_for_what_is_not_there(parties, turn):
    with pytest.raises(PeerError, match=r"has no place here|closed the connection"):
        parties.client.agree(turn=turn)


REPLAYS = {
    "a number": (0, 8, "asked for a query out of order"),
    "a number to come": (3, 8, "asked for a query out of order"),
    "rows ahead": (1, 10, "has no place here"),
}


@pytest.mark.parametrize("case", REPLAYS)
def test_a_step_is_never_replayed(parties, case):
    """A client that asks for a pass twice, or for rows that are not kept, ends its session."""
    later, rows, words = REPLAYS[case]
    rows_of(parties).read(some(9).tolist())
    party = parties.client
    party.settle()
    ask = Ask(query=party.number - 1 + later, turn=Turn(part="1@64", rows=rows, runs=8))
    party.server.send_message(ask.message())
    with pytest.raises(PeerError, match="closed the connection"):
        party.server.recv_message()
    who, error = parties.failures[0]
    assert (who, type(error)) == ("server", PeerProtocolError)
    assert words in str(error)
