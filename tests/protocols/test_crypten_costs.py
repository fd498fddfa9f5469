"""What N parties declare is what they meter: each party's bytes, the dealer's corrections, and the rounds."""

import pytest
import torch
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price as beaver_price
from blindformer.protocols.crypten.costs import Moved
from blindformer.protocols.crypten.pricing import ManyPricingEngine
from blindformer.protocols.ring import Ring
from blindformer.tests.protocols.cases import CASES
from blindformer.tests.protocols.many import run_many
from blindformer.tests.protocols.programs import handed_over
from blindformer.tests.protocols.random_programs import programs
from blindformer.tests.protocols.test_crypten import two_owners
from hypothesis import given, settings


def declared(case, owners=None):
    """(the costs of all instructions, rounds)."""
    shapes = case.program.weight_shapes().items()
    weights = {name: torch.empty(shape, dtype=torch.int64, device="meta") for name, shape in shapes}
    engine = ManyPricingEngine(Ring(), weights, owners)
    rounds = interpret(case.program, engine, lambda swaps: [None] * len(swaps)).rounds
    return list(engine.prices.values()), rounds


def assert_metered(case, size, owners=None, recipient=1) -> None:
    (costs, rounds), ran = declared(case, owners), run_many(case, size, owners=owners, recipient=recipient)
    assert ran.rounds == rounds
    assert sum(cost.offline for cost in costs) == sum(Correlations(case.program, owners or {}).layout)
    steps = [step for cost in costs for step in cost.steps]
    for rank, traffic in enumerate(ran.traffic):
        assert sum(traffic.sent.values()) == sum(step.sent(rank, size, recipient) for step in steps)
        assert sum(traffic.received.values()) == sum(step.received(rank, size, recipient) for step in steps)


@pytest.mark.parametrize("name", CASES)
def test_declared_is_metered(name):
    assert_metered(CASES[name](), 3)


@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("recipient", [0, 1])
def test_declared_is_metered_for_any_number_of_parties(size, recipient):
    assert_metered(CASES["one_layer"](), size, recipient=recipient)


@pytest.mark.parametrize("recipient", [0, 2])
def test_declared_is_metered_for_several_owners(recipient):
    case = two_owners()
    names = sorted(case.client, key=lambda name: int(name.removeprefix("client")))
    assert_metered(case, 4, dict(zip(names, [1, 2, 3, 0], strict=True)), recipient)


def test_declared_is_metered_for_an_owner_who_takes_no_part():
    assert_metered(handed_over(CASES["one_layer"]()), 3)


@given(programs())
@settings(max_examples=15)
def test_declared_is_metered_for_any_program(case):
    assert_metered(case, 3)


@pytest.mark.parametrize("name", ["one_layer", "one_value_many_readers"])
def test_two_parties_pay_what_beaver_declares(name):
    """And the leader a share of zero more for each result, from the dealer."""
    case = CASES[name]()
    costs, rounds = declared(case)
    steps, beaver = [step for cost in costs for step in cost.steps], beaver_price(case.program)
    assert rounds == beaver.rounds
    assert [sum(step.sent(rank, 2, 1) for step in steps) for rank in (0, 1)] == [beaver.down, beaver.up]
    assert sum(cost.offline for cost in costs) > beaver.offline_bytes


@pytest.mark.parametrize("size", [2, 3, 7])
def test_an_opening_goes_to_everybody_and_the_rest_to_or_from_one(size):
    sent = lambda moved: sum(moved.sent(rank, size, 1) for rank in range(size))  # noqa: E731
    assert sent(Moved(opened=10)) == 10 * size * (size - 1)
    assert sent(Moved(gathered=10)) == sent(Moved(spread=10, one=1)) == 10 * (size - 1)
    for moved in (Moved(opened=3, gathered=5, spread=7), Moved(gathered=5, spread=7, one=1)):
        assert sent(moved) == sum(moved.received(rank, size, 1) for rank in range(size))
