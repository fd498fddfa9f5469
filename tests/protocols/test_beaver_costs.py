"""What the design promises about the price. That it is what the channels meter, `run_beaver` asserts of every run."""

import json

import pytest
import torch
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program
from blindformer.protocols.beaver.engine import PricingEngine
from blindformer.protocols.beaver.primitive import primitives
from blindformer.protocols.operations import of_kind
from blindformer.protocols.ring import Ring
from blindformer.tests.protocols.cases import CASES
from blindformer.tests.protocols.harness import run_beaver
from blindformer.tests.protocols.programs import Data, Draft, hidden, scaled


def costs(case):
    """Declared cost of every instruction, by number."""
    shapes = case.program.weight_shapes().items()
    engine = PricingEngine(Ring(), {n: torch.empty(s, dtype=torch.int64, device="meta") for n, s in shapes})
    interpret(case.program, engine, lambda swaps: [None] * len(swaps))
    return {int(key): cost for key, cost in engine.costs.items()}


@pytest.mark.parametrize("name", ["one_layer", "rescale_in_a_smaller_ring-48", "less-33"])
def test_declared_is_metered_when_only_the_result_is_revealed(name):
    case = CASES[name]()
    keep = max(case.program.outputs, key=int)
    number = case.program.outputs[keep]
    items = [x for i, x in enumerate(case.program.instructions) if x.op != "reveal" or i == number]
    program = case.program.model_copy(update={"instructions": tuple(items), "outputs": {keep: len(items) - 1}})
    run_beaver(type(case)(program, case.client, case.weights, case.constants))  # which holds it against its price


def test_every_interactive_operation_has_a_primitive():
    assert set(primitives()) == of_kind("private", "shared", "result")


def test_rows_add_up_to_the_totals():
    total = price(CASES["one_layer"]().program)
    assert total.online_bytes == total.up + total.down
    for rows in (total.layers, total.operations):
        for name in ("online_bytes", "offline_bytes", "macs"):
            assert sum(getattr(row, name) for row in rows) == getattr(total, name)


def test_price_belongs_to_the_program_not_to_its_place_in_memory():
    case = CASES["linear"]()
    again = Program.from_json(json.dumps(json.loads(case.program.to_json())))
    assert price(again) == price(case.program)
    assert price(CASES["square"]().program) != price(case.program)


def draft(seed: int = 0) -> tuple[Draft, Data]:
    return Draft(), Data(seed)


def test_a_linear_is_one_message_from_the_client_whatever_its_size():
    d, data = draft()
    x = hidden(d, data, 5, 7)
    wide = d("linear", x, d.weight(data.ints(7, 300)))
    narrow = d("linear", x, d.weight(data.ints(7, 2)))
    cost = costs(d.case())
    # `hidden` itself opened nothing of x, so the first linear sends X1 - A and the second finds it there.
    assert cost[wide].steps == ((0, 8 * 5 * 7),)
    assert cost[narrow].steps == ()
    assert (cost[wide].offline, cost[narrow].offline) == (8 * 5 * 300, 8 * 5 * 2)


def test_a_square_opens_once_and_a_product_twice():
    d, data = draft()
    x, y, z = (hidden(d, data, 5, 7) for _ in range(3))
    square, product = d("mul", x, x), d("mul", y, z)
    cost = costs(d.case())
    assert cost[square].steps == ((280, 280),)
    assert cost[product].steps == ((560, 560),)
    assert cost[square].offline == cost[product].offline == 280


def test_what_a_rescale_has_opened_is_free_to_multiply_and_raise():
    d, data = draft()
    x, y = scaled(d, data, 5, 7), scaled(d, data, 5, 7)
    free = [d("mul", x, y), d("mul", x, x), d("polynomial", x, coefficients=[1, 2, 3, 4, 5])]
    cost = costs(d.case())
    assert all(cost[number].rounds == 0 for number in free)


def test_a_rescaled_value_and_a_public_number_have_an_open_sum():
    d, data = draft()
    x, number = scaled(d, data, 5, 7), d.constant(3)
    moved = [d("add", x, number), d("sub", x, number), d("sub", number, x)]
    squares = [d("mul", value, value) for value in moved]
    cost = costs(d.case())
    assert [cost[square].steps for square in squares] == [(), (), ((280, 280),)]


def test_a_square_of_a_rescaled_value_has_each_product_of_its_masks_once():
    d, data = draft()
    x, y = scaled(d, data, 5, 7), scaled(d, data, 5, 7)
    square, product = d("mul", x, x), d("mul", x, y)
    cost = costs(d.case())
    assert cost[square].offline == 35 * (8 + 2)  # low^2, and low times the wrap's bits above 52
    assert cost[product].offline == 35 * (8 + 2 + 2)


def test_a_product_of_matrices_opens_of_a_rescaled_value_what_is_above_the_bits_that_are_open():
    d, data = draft()
    x, y = scaled(d, data, 5, 7), hidden(d, data, 7, 5)
    first, again = d("matmul", x, y), d("matmul", y, x)
    cost = costs(d.case())
    assert cost[first].steps == ((35 * (2 + 8),) * 2,)  # 12 bits of x, all of y
    assert cost[again].steps == ()


def test_a_polynomial_is_one_round_whatever_its_degree():
    for degree in (2, 3, 4):
        d, data = draft()
        number = d("polynomial", hidden(d, data, 5), coefficients=[1] * (degree + 1))
        assert costs(d.case())[number].steps == ((40, 40),)


def test_thresholds_of_one_value_share_its_opening():
    d, data = draft()
    x = hidden(d, data, 64)
    first, second = (d("less", x, threshold=t, bits=21) for t in (3, -9))
    cost = costs(d.case())
    assert cost[first].rounds == cost[second].rounds + 1
    assert cost[first].offline > cost[second].offline


def test_both_sides_of_a_cut_cost_the_rounds_of_one_threshold_and_stay_open():
    d, data = draft()
    x = scaled(d, data, 64)
    both = d("sides", x, low=-9, high=9, bits=21)
    inside, above = (d("slice", both, dim=0, start=at, stop=at + 64, step=1) for at in (0, 64))
    products = [d("mul", bit, x) for bit in (inside, above)]
    cost = costs(d.case())
    assert cost[both].rounds == 2
    for number in products:  # of each bit's one mask with the two of x, a rescaled value
        assert cost[number].steps == ()
        assert cost[number].offline == 64 * (8 + 2)


def test_a_maximum_and_an_exponential_take_no_number_for_each_cell():
    d, data = draft()
    x = d("mul_private", d.client(data.ints(2, 64)), d.weight(torch.ones(1)), width=24)
    reached = d("reached", x, start=0, bits=24, low=18, width=8)
    table = d.constant(data.ints(2, 9, bits=9).abs())
    exp = d("exp", x, table, start=0, bits=24, low=18, drop=0, rate=8.0, fraction=9, width=40)
    cost = costs(d.case())
    assert cost[exp].offline == 128 * (8 + 3 * 5)  # a bit a cell; a number, and its products with two bits
    assert cost[exp].rounds == 1
    assert cost[reached].rounds == 4  # x, 20 parities to 5 and to 1, and the number


def test_narrow_comparisons_take_fewer_rounds():
    rounds = []
    for bits in (5, 21, 32, 49):
        d, data = draft()
        number = d("less", d.client(data.ints(9, bits=4)), threshold=0, bits=bits)
        rounds.append(costs(d.case())[number].rounds)
    assert rounds == sorted(rounds)
    assert rounds[1] <= 3
    assert rounds[-1] <= 5


def test_only_the_bytes_that_matter_travel():
    d, data = draft()
    x = d("mul_private", d.client(data.ints(100)), d.weight(torch.ones(1)), width=48)
    numbers = [d("rescale", x, bits=16, ring=48, width=width) for width in (32, 48)]
    free, wide = (costs(d.case())[number] for number in numbers)
    assert free.steps == ()
    assert free.offline == 0
    assert wide.steps == ((400, 400),)  # the 32 bits that are left
    assert wide.offline == 100 * (2 + 2)  # the 16 above them, of what wraps and of what may
