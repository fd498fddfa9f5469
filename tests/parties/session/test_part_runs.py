"""A conversation in a session: what two parties compute, pass by pass, and what a peer may not ask for."""

from itertools import repeat

import pytest
import torch
from blindformer.models.generation.rows import KVState, run_clear
from blindformer.parties.session import preprocessed
from blindformer.parties.session.dealing import DealerParty
from blindformer.parties.session.messages import Announce, Ask, PartRun, Runs, SlotsBusy
from blindformer.parties.session.n_party import PartyModel
from blindformer.parties.session.online import part_run, passes
from blindformer.parties.session.two_party_server import ServerParty
from blindformer.protocols.beaver import source
from blindformer.protocols.errors import PeerError, PeerProtocolError
from blindformer.tests.models.generation.conftest import PREFIX, declared, some, spent
from blindformer.tests.parties.session.site import Follower, Turnstile
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared import threads
from blindformer.tests.shared.threads import ThreadParties


@pytest.fixture
def parties(compiled):
    with ThreadParties(compiled, timeout=PATIENCE) as session:
        yield session


def rows_of(parties, on_pass=None):
    return KVState(parties.compiled.program, passes(parties.client, parties.compiled.parts, on_pass), PREFIX)


ONE = (1,)
READS = [  # the program, and how many tokens are read before a draft is rejected that kept so many, and after it
    ("compiled", (11, 1, 1), 12, (4, *ONE * 4), 2, 2e-2),
    pytest.param("roomy", (57, *ONE * 18, 62, *ONE * 3), 140, (), 6, 3e-2, marks=pytest.mark.slow),
    pytest.param("windowed", (180, *ONE * 4, 11), 186, (*ONE * 10, 24), 2, 3e-2, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("program", "before", "kept", "after", "parts", "tolerance"), READS)
def test_passes_give_what_clear_gives_and_cost_what_is_declared(
    request, program, before, kept, after, parts, tolerance
):
    """After a rejected draft other tokens take its rows, with masks of their own, and correlations made for other rows
    are dropped."""
    compiled, text, costs = request.getfixturevalue(program), some(220).tolist(), []

    def told(name, answer):
        costs.append((name, spent(answer), declared(compiled.program.part(name), answer)))

    clear = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    with ThreadParties(compiled, timeout=PATIENCE) as session:
        private = rows_of(session, told)
        for rows_kept, sizes in ((0, before), (kept, after)):
            for rows in (private, clear):
                rows.crop(len(PREFIX) + rows_kept)
            for size in sizes:
                read = text[clear.rows : clear.rows + size]
                torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=tolerance)
    assert len({name for name, *_ in costs}) == parts
    assert all(metered == wanted for _, metered, wanted in costs)


def test_rows_that_nobody_wants_stay_with_the_server_and_do_not_count(compiled, monkeypatch):
    """A question of 19 tokens takes two passes of 8, and one of them for 3; to draw what follows takes one row."""
    counted, seen = [], []
    counting = lambda *given, **options: ServerParty(*given, **{**options, "count": counted.append})  # noqa: E731
    monkeypatch.setattr(threads, "ServerParty", counting)
    text = some(19).tolist()
    whole = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX).read(text)
    with ThreadParties(compiled, timeout=PATIENCE) as session:
        private = rows_of(session, lambda name, answer: seen.append((name, answer)))
        torch.testing.assert_close(private.read(text, wanted=1), whole[-1:], rtol=0, atol=2e-2)
        private.read_again()
    assert counted == [1] * 6
    sizes = [answer.outputs[next(iter(answer.outputs))].shape[1] for _, answer in seen]
    assert sizes == [0, 0, 1, 0, 0, 0]
    assert all(spent(answer) == declared(compiled.program.part(name), answer) for name, answer in seen)


def test_a_number_that_is_asked_again_for_more_rows_counts_these(compiled, monkeypatch):
    """At first for none, of correlations that there are not."""
    counted = []
    counting = lambda *given, **options: ServerParty(*given, **{**options, "count": counted.append})  # noqa: E731
    monkeypatch.setattr(threads, "ServerParty", counting)
    with ThreadParties(compiled, timeout=PATIENCE) as session:
        party, honest = session.client, session.client.agree

        def twice(more, runs, progress):
            nothing = runs.model_copy(update={"revealed": (0, 0)}).message()
            party.server.send_message({**nothing, "query": party.number, "store": {"session": "0" * 32, "number": 0}})
            assert party._expect("missing")["missing"] == 0
            return honest(more, runs, progress)

        monkeypatch.setattr(party, "agree", twice)
        rows_of(session).read(some(8).tolist())
    assert sum(counted) == 8


def test_all_rows_that_are_wanted_count(compiled, monkeypatch):
    counted = []
    counting = lambda *given, **options: ServerParty(*given, **{**options, "count": counted.append})  # noqa: E731
    monkeypatch.setattr(threads, "ServerParty", counting)
    with ThreadParties(compiled, timeout=PATIENCE) as session:
        rows_of(session).read(some(11).tolist(), wanted=5)
    assert counted == [2, 3]


def test_a_party_holds_one_runs_correlations_however_many_passes_a_text_takes(compiled, monkeypatch):
    """The next pass's are made as the present pass's are used, at both parties; the answers are as without."""
    text, held = some(40).tolist(), []
    wait = preprocessed.Pace.wait

    def waiting(pace, ahead, total, size, peer=None):
        wait(pace, ahead, total, size, peer)
        left = pace.left()
        held.append((peer is None, left / pace.count + ahead / total, left))

    monkeypatch.setattr("blindformer.models.program.correlations.LARGE", 0)
    monkeypatch.setattr(source, "PIECE", 1 << 14)
    monkeypatch.setattr(preprocessed.Pace, "wait", waiting)
    clear = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    with ThreadParties(compiled, timeout=PATIENCE) as session:
        torch.testing.assert_close(rows_of(session).read(text), clear.read(text), rtol=0, atol=2e-2)
    for client in (True, False):
        together = [(both, left) for who, both, left in held if who is client]
        assert any(left for _, left in together)
        assert all(both <= 1 + 1e-9 or not left for both, left in together)


def test_the_same_text_twice_is_sent_under_other_masks(compiled):
    text, sent = some(9).tolist(), []
    for _ in range(2):
        with ThreadParties(compiled, timeout=PATIENCE) as session:
            rows_of(session).read(text)
            sent.append(session.client.states.held["key_0"][0])
    assert not torch.equal(*sent)


@pytest.mark.parametrize(
    ("busy", "announced", "again"),
    [("server", True, False), ("server", False, False), ("dealer", False, True), ("dealer", False, False)],
)
def test_a_pass_that_is_turned_away_is_asked_for_again_or_never(compiled, monkeypatch, busy, announced, again):
    """What comes then has masks of its own on both sides, and the integers of a session in which nobody was busy."""
    text, slots = some(14).tolist(), Turnstile(party=busy)
    party_class = {"server": ServerParty, "dealer": DealerParty}[busy]
    admitted = lambda *given, **options: party_class(*given, **{**options, "admission": slots})  # noqa: E731
    monkeypatch.setattr(threads, party_class.__name__, admitted)
    clear = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    with ThreadParties(compiled, timeout=PATIENCE) as session:
        private = rows_of(session)
        for rows in (private, clear):
            rows.read(text[:9])
            if not announced:  # the correlations that were made are for another run
                rows.crop(len(PREFIX) + 8)
        slots.refuse = repeat(True)
        with pytest.raises(SlotsBusy):
            private.read(text[9:10])
        slots.refuse = iter(())
        for read in (text[9:10], text[10:11], text[11:14]) if again else (text[9:13], text[13:14]):
            torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)


@pytest.mark.parametrize(
    ("part_run", "revealed"),
    [
        (PartRun(part="2"), None),
        (PartRun(part="1@64", rows=5), None),
        (PartRun(part="8@64", runs=8), None),
        (PartRun(part="8@64"), (0, 9)),
        (PartRun(part="8@64"), (5, 3)),
    ],
    ids=["a part", "rows", "runs", "a result's rows", "rows backwards"],
)
def test_a_client_cannot_ask_for_what_is_not_there(parties, part_run, revealed):
    with pytest.raises(PeerError, match=r"has no place here|closed the connection"):
        parties.client.agree(runs=Runs(turn=part_run, revealed=revealed))


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
    ask = Ask(query=party.number - 1 + later, turn=PartRun(part="1@64", rows=rows, runs=8))
    party.server.send_message(ask.message())
    with pytest.raises(PeerError, match="closed the connection"):
        party.server.recv_message()
    who, error = parties.failures[0]
    assert (who, type(error)) == ("server", PeerProtocolError)
    assert words in str(error)


# --- between two messages --------------------------------------------------------------------------------------------
def prepared(parties, text):
    """Rows of a conversation that is read so far, and whose next question's pass is prepared."""
    private = rows_of(parties)
    private.ahead = lambda part, rows: parties.client.announce(part_run(parties.compiled.program, part, rows))
    if text:
        private.read(text)
    private.prepare()
    parties.client.settle()
    return private


@pytest.mark.parametrize(
    ("before", "then"), [(0, 8), (9, 8), (9, 1), (9, 11)], ids=["first", "as told", "less", "more"]
)
def test_a_prepared_pass_gives_what_clear_gives_whatever_is_asked_then(parties, compiled, before, then):
    text = some(40).tolist()
    private = prepared(parties, text[:before])
    clear = KVState(compiled.program, run_clear(compiled.parts, compiled.weights), PREFIX)
    if before:
        clear.read(text[:before])
    for read in (text[before : before + then], text[30:31], text[31:32]):
        torch.testing.assert_close(private.read(read), clear.read(read), rtol=0, atol=2e-2)


def test_a_prepared_pass_asks_the_dealer_for_nothing_more(parties, monkeypatch):
    private = prepared(parties, some(9).tolist())
    runs, prepare = [], parties.client._prepare
    monkeypatch.setattr(parties.client, "_prepare", lambda number, run: runs.append(run) or prepare(number, run))
    private.read(some(8, 1).tolist())
    assert [run.part for run in runs] == ["1@64"]  # that of the pass that follows


def test_one_pass_is_prepared_between_two_queries(parties):
    prepared(parties, some(9).tolist())
    party = parties.client
    announcement = Announce(announce=party.number + 1, turn=PartRun(part="1@64", rows=3)).model_dump()
    party.server.send_message(announcement)
    with pytest.raises(PeerError, match="closed the connection"):
        party.server.recv_message()
    assert isinstance(parties.failures[0][1], PeerProtocolError)


@pytest.mark.parametrize(
    ("number", "part_run"),
    [
        (0, PartRun(part="2")),
        (0, PartRun(part="8@64", rows=5)),
        (0, PartRun(part="8@64", runs=8)),
        (3, PartRun(part="8@64")),
    ],
    ids=["a part", "rows", "runs", "a number"],
)
def test_what_is_not_there_cannot_be_announced(parties, number, part_run):
    parties.client._go_live()
    parties.client.server.send_message(Announce(announce=number, turn=part_run).model_dump())
    with pytest.raises(PeerError, match="closed the connection"):
        parties.client.server.recv_message()
    assert isinstance(parties.failures[0][1], PeerProtocolError)


# --- among N parties -------------------------------------------------------------------------------------------------
@pytest.fixture
def carol(compiled):
    one = Follower(PartyModel(compiled.program, {}, parts=compiled.parts), compiled.weights)
    yield one
    one.close()


@pytest.mark.parametrize(
    "part_run", [PartRun(part="2"), PartRun(), PartRun(part="1@64", rows=5), PartRun(part="8@64", runs=8)], ids=repr
)
def test_who_follows_runs_no_part_that_is_not_there(carol, part_run):
    with pytest.raises(PeerProtocolError, match="has no place here"):
        carol.hear({"query": 0, **part_run.message()})


def test_who_follows_runs_no_number_twice_and_no_rows_ahead(carol, monkeypatch):
    ran = []
    monkeypatch.setattr(carol.party, "_answer", lambda number, part_run, *more: ran.append((number, part_run)))
    first = PartRun(part="8@64")
    carol.hear({"query": 0, **first.message()})
    with pytest.raises(PeerProtocolError, match="asked for a query out of order"):
        carol.hear({"query": 0, **first.message()})
    with pytest.raises(PeerProtocolError, match="has no place here"):
        carol.hear({"query": 1, **PartRun(part="1@64", rows=9).message()})
    assert ran == [(0, first)]


def test_a_block_is_dealt_once_and_what_is_left_of_it_is_dropped_where_the_asker_goes_otherwise(carol):
    """The leader is asked to be ready for each deal, and for no pass that finds its correlations left."""
    make, part_run = carol.party._make, PartRun(part="1@64", runs=8)
    carol.asker.send_message({"ready": 0})
    taken = [make(0, part_run), make(1, part_run.model_copy(update={"rows": 1}))]
    carol.asker.send_message({"ready": 2})
    taken.append(make(2, part_run.model_copy(update={"rows": 1})))  # the same place again, under other masks
    masks = [next(entry for _, entry in tape.drain() if isinstance(entry, torch.Tensor)) for tape in taken]
    assert len({str(mask) for mask in masks}) == 3
