"""Values that a session keeps between its runs: right, at the declared price, masked once, and never told."""

from collections.abc import Callable
from functools import partial
from itertools import combinations

import pytest
import torch
from blindformer.models.program.correlations import Correlations, placeholders
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.models.program.program import ProgramError, check_offers
from blindformer.protocols.base import find
from blindformer.protocols.beaver.engine import OnlineEngine, PricingEngine
from blindformer.protocols.beaver.values import Tape
from blindformer.protocols.errors import CorrelationError
from blindformer.protocols.ring import Ring
from blindformer.protocols.rounds import Swap
from blindformer.protocols.states import SPARE, KeptStates, RunStates, StateError
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.protocols.harness import Seeds, SessionStates, run_beaver
from blindformer.tests.protocols.many import run_many
from blindformer.tests.protocols.programs import Case, Data, Draft, check, handed_over, hidden
from blindformer.tests.protocols.sessions import every_reader, session
from blindformer.tests.protocols.test_beaver_costs import costs
from blindformer.tests.protocols.test_beaver_transcripts import alike, even, raw, related, related_runs, suspicions
from torch import Tensor

Run = Callable[[Case], dict[str, Tensor]]


def of_beaver() -> Run:
    states, seeds = SessionStates(), Seeds()
    numbers = iter(range(100))
    return lambda case: run_beaver(case, seeds, f"query {next(numbers)}", states=states).outputs


def of_many(size: int) -> Run:
    states = SessionStates()
    return lambda case: run_many(case, size, states=states).outputs


SESSIONS: dict[str, Callable[[], Run]] = {
    "clear": lambda: partial(Case.clear, states=KeptStates()),
    "beaver": of_beaver,
    "crypten 2": partial(of_many, 2),
    "crypten 3": partial(of_many, 3),
}
PARTIES = {"crypten 3": 3}  # where they are not two
PROTOCOLS = pytest.mark.parametrize("name", SESSIONS)


@PROTOCOLS
@pytest.mark.parametrize("away", [False, True], ids=["", "owner away"])
def test_every_run_reads_what_earlier_ones_kept(name, away):
    """Of two programs that share their states. Whoever runs them holds them against their price."""
    run = SESSIONS[name]()
    for case in session():
        case = handed_over(case) if away else case
        check(case, run(case), PARTIES.get(name, 2))


@PROTOCOLS
def test_all_operations_read_a_state_and_what_is_kept(name):
    run, kept = SESSIONS[name](), None
    for rows in (4, 2):
        case = every_reader(rows, kept)
        outputs = run(case)
        check(case, outputs, PARTIES.get(name, 2))
        keep = next(str(i) for i, item in enumerate(case.program.instructions) if item.op == "keep")
        kept = outputs[keep] if kept is None else torch.cat([kept, outputs[keep]])


@PROTOCOLS
def test_sessions_have_states_of_their_own(name):
    first, _, second, _ = session()
    SESSIONS[name]()(first)
    outputs = SESSIONS[name]()(first)
    check(first, outputs, PARTIES.get(name, 2))
    with pytest.raises(AssertionError):
        check(second, SESSIONS[name]()(second), PARTIES.get(name, 2))


@PROTOCOLS
def test_a_run_that_finds_too_many_rows_says_so(name):
    run = SESSIONS[name]()
    cases = session([3, 1, 1, 1], room=4)
    for case in cases[:2]:
        run(case)
    run(cases[2])  # reads four rows, and keeps a fifth
    with pytest.raises(StateError, match=r"^state k: 5 rows exceed the program's 4; start a new") as one:
        run(cases[3])
    assert "\n" not in str(one.value)


@PROTOCOLS
def test_a_run_may_take_the_last_rows_of_more_than_there_is_room_for(name):
    run = SESSIONS[name]()
    for case in session([3, 2, 1, 4, 1, 1], room=4, last=True):
        check(case, run(case), PARTIES.get(name, 2))


def numbered(rows: int) -> Tensor:
    return torch.arange(rows)[:, None]


def test_rows_behind_the_last_are_dropped_but_for_those_that_runs_may_go_back_to():
    states = KeptStates()
    RunStates(states).keep("k", numbered(SPARE + 10))
    RunStates(states).read("k", (4, 1), last=True)
    states.truncate(SPARE + 10)
    assert (states.first, states.rows("k"), states.held["k"].shape[-2]) == (6, SPARE + 10, SPARE + 4)
    states.truncate(10)
    assert RunStates(states).read("k", (4, 1), last=True)[:, 0].tolist() == [6, 7, 8, 9]
    RunStates(states).keep("k", numbered(2))
    assert RunStates(states).read("k", (4, 1), last=True)[:, 0].tolist() == [8, 9, 0, 1]
    for rows in (9, 3):
        states.truncate(rows)
        with pytest.raises(StateError, match=r"^state k: rows before \d were dropped; start a new session"):
            RunStates(states).read("k", (4, 1), last=True)
    states.truncate(0)
    assert not RunStates(states).read("k", (4, 1), last=True).any()
    assert states.rows("k") == states.first == 0


# --- the price -------------------------------------------------------------------------------------------------------
def test_layout_and_price_are_the_program_s_whatever_is_kept():
    first, second, *_ = session()
    for owners in (None, {}):
        filled, correlations = KeptStates("meta"), Correlations(second.program, owners)
        Correlations(first.program, owners).count(filled)
        assert filled.rows("k") == 4
        assert correlations.count(filled).layout == correlations.count().layout == correlations.layout
    engine = PricingEngine(Ring(), placeholders(second.program), filled)
    rounds = interpret(second.program, engine, lambda swaps: [None] * len(swaps)).rounds
    assert rounds == price(second.program).rounds
    assert {int(key): cost for key, cost in engine.costs.items()} == costs(second)


def test_a_product_with_a_state_opens_its_other_argument_alone():
    d, data = Draft(), Data(0)
    q, k = hidden(d, data, 2, 3, 4), d.state("k", torch.zeros(1, 8, 4))
    both = d("concat", k, d("keep", hidden(d, data, 1, 2, 4), name="k"), dim=1)
    wide = d("permute", d("expand", both, sizes=[2, 10, 4]), dims=[0, 2, 1])
    first, second = d("matmul", q, wide), d("matmul", d("neg", q), d("permute", k, dims=[0, 2, 1]))
    third = d("mul", k, k)
    cost = costs(d.case())
    opening = 8 * 2 * 3 * 4
    assert cost[first].steps == cost[second].steps == ((opening, opening),)
    assert cost[third].steps == ()
    assert cost[first].offline == 8 * 2 * 3 * 10


def test_what_is_kept_is_opened_whole_and_once():
    d, data = Draft(), Data(0)
    x = hidden(d, data, 5, 4)
    readers = [d("keep", x, name="k"), d("matmul", x, d("permute", x, dims=[1, 0]), width=8), d("mul", x, x, width=8)]
    cost = costs(d.case())
    assert cost[readers[0]].steps == ((8 * 20, 8 * 20),)
    assert cost[readers[0]].offline == 0
    assert cost[readers[1]].steps == ((8 * 20, 8 * 20),)  # of the transpose, which is another value
    assert cost[readers[2]].steps == ()


# --- what a party sees -----------------------------------------------------------------------------------------------
def wide_session(room: int = 256, last: bool = False) -> list[Case]:
    """Of enough numbers to test: three runs on one input."""
    return session([64, 64, 64], room=room, width=32, reveal_all=False, last=last)


@pytest.mark.parametrize(("room", "last"), [(256, False), (96, True)], ids=["all rows", "the last rows"])
def test_every_party_sees_uniform_bytes_in_every_run(room, last):
    states, seeds = SessionStates(), Seeds()
    ran = [run_beaver(case, seeds, f"query {i}", states=states) for i, case in enumerate(wide_session(room, last))]
    assert all(suspicions(one) == set() and even(raw(one.offline_frames)) for one in ran)
    assert not any(related_runs(one, other) for one, other in combinations(ran, 2))


def test_every_one_of_three_parties_sees_uniform_numbers():
    states = SessionStates()
    ran = [run_many(case, 3, states=states) for case in wide_session()]
    for one in ran:
        assert all(even(seen) and not related(alike(seen)) for seen in one.views)
    for one, other in combinations(ran, 2):
        assert not any(related(zip(*seen, strict=True)) for seen in zip(one.views, other.views, strict=True))


def test_the_same_session_twice_gives_unrelated_transcripts():
    seeds, cases = Seeds(), wide_session()[:2]
    runs = []
    for number in range(2):
        states = SessionStates()
        runs.append([run_beaver(case, seeds, f"{number} {i}", states=states) for i, case in enumerate(cases)])
    assert not any(related_runs(one, other) for one, other in zip(*runs, strict=True))


def test_masks_that_return_in_the_next_run_are_caught():
    states, seeds = SessionStates(), Seeds()
    first, second = (run_beaver(case, seeds, states=states) for case in wide_session()[1:])
    assert related_runs(first, second)


def test_parties_hold_public_rows_and_shares_of_their_masks():
    """And the dealer the masks: of all that its own phase put there."""
    states, seeds = SessionStates(), Seeds()
    for i, case in enumerate(session([4, 1])):
        run_beaver(case, seeds, f"query {i}", states=states)
    server, client = (states.online[role].held["k"] for role in ("server", "client"))
    assert torch.equal(server[0], client[0])
    assert torch.equal(server[1] + client[1], states.offline["dealer"].held["k"])
    assert torch.equal(server[1], states.offline["server"].held["k"])
    assert torch.equal(client[1], states.offline["client"].held["k"])


# --- what must not happen --------------------------------------------------------------------------------------------
def no_peer(swaps: list[Swap]) -> list[Tensor | None]:
    """A peer that sends zeros."""
    return [None if swap.expect is None else torch.zeros(swap.expect, dtype=torch.int64) for swap in swaps]


def client_tape(case: Case, states: KeptStates) -> Tape:
    stream = Stream(new_seed(), "weight masks")
    masked = {name: stream.integers(name, shape) for name, shape in case.program.weight_shapes().items()}
    return Correlations(case.program).follow(Stream(new_seed(), "query"), masked, states=states)


def client_run(case: Case, tape: Tape, states: KeptStates) -> None:
    interpret(case.program, OnlineEngine("client", tape, Ring(), case.client, {}, states), no_peer)


def test_correlations_serve_one_run():
    case = session()[0]
    tape = client_tape(case, KeptStates())
    client_run(case, tape, KeptStates())
    with pytest.raises(CorrelationError, match="already used; masks are used once"):
        client_run(case, tape, KeptStates())


def test_correlations_of_several_runs_are_made_ahead_and_none_is_left_out():
    cases, offline, online = session(), KeptStates(), KeptStates()
    tapes = [client_tape(case, offline) for case in cases]
    for number in (0, 1):
        client_run(cases[number], tapes[number], online)
    with pytest.raises(CorrelationError, match="state k: these correlations are for another number of rows"):
        client_run(cases[3], tapes[3], online)


def test_a_source_that_was_prepared_and_never_read_spoils_no_answer():
    """Its masks have the shape of the one before, so its number tells. The next source is read again."""
    data, offline, online = Data(0), KeptStates(), KeptStates()
    source, reader = Draft(), Draft()
    rows = data.ints(3, 4, bits=10)
    source("keep", hidden(source, data, 3, 4), name="source", whole=True)
    read = reader.state("source", rows, whole=True)
    reader("mul", read, read)
    source_case, reader_case = source.case(), reader.case()
    cases = [source_case, source_case, reader_case, source_case, reader_case]
    tapes = [client_tape(case, offline) for case in cases]
    client_run(cases[0], tapes[0], online)
    with pytest.raises(CorrelationError, match="state source: these correlations are for another source; start a new"):
        client_run(cases[2], tapes[2], online)
    for number in (3, 4):
        client_run(cases[number], tapes[number], online)


def test_a_run_sees_what_was_kept_when_it_began():
    states = KeptStates()
    before = RunStates(states)
    RunStates(states).keep("k", torch.ones(2, 3, dtype=torch.int64))
    assert before.rows("k") == 0
    assert not before.read("k", (4, 3)).any()
    assert RunStates(states).read("k", (4, 3)).tolist() == [[1] * 3] * 2 + [[0] * 3] * 2
    assert states.rows("k") == 2


def test_rows_of_another_shape_and_two_of_one_name_are_refused():
    states = KeptStates()
    run = RunStates(states)
    run.keep("k", torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(StateError, match="state k: is added to twice in one program"):
        run.keep("k", torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(StateError, match="state k: its rows are of another shape"):
        RunStates(states).read("k", (5, 4))
    with pytest.raises(StateError, match="state k: its rows are of another shape"):
        RunStates(states).keep("k", torch.ones(1, 2, 3, dtype=torch.int64))


def test_ciphertexts_keep_nothing():
    with pytest.raises(ProgramError, match="which protocol ckks does not offer"):
        check_offers(session()[0].program, find("ckks"))


def test_a_whole_state_is_replaced_and_not_forgotten_with_the_rows_of_others():
    states = KeptStates()
    first, second = (torch.full((1, rows, 2), value) for rows, value in ((3, 7), (2, 9)))
    RunStates(states).keep("source", first, whole=True)
    RunStates(states).keep("rows", torch.ones(1, 4, 2, dtype=torch.int64))
    states.truncate(1)
    run = RunStates(states)
    assert (run.rows("source"), run.rows("rows")) == (3, 1)
    assert run.read("source", (1, 4, 2), whole=True)[0, :, 0].tolist() == [7, 7, 7, 0]
    RunStates(states).keep("source", second, whole=True)
    assert RunStates(states).read("source", (1, 4, 2), whole=True)[0, :, 0].tolist() == [9, 9, 0, 0]
    assert run.read("source", (1, 3, 2), whole=True)[0, :, 0].tolist() == [7, 7, 7]  # as the run began


def test_rows_may_stand_at_the_end_of_their_room():
    states = KeptStates()
    RunStates(states).keep("rows", torch.tensor([[[1], [2]]]))
    assert RunStates(states).read("rows", (1, 4, 1), end=True).flatten().tolist() == [0, 0, 1, 2]
