"""What is revealed of a model's outputs: integers of as few bits as an answer needs, in every protocol."""

import math

import pytest
from blindformer.models.program.encoding import answer_bits
from blindformer.models.program.pricing import price
from blindformer.models.program.program import Program
from blindformer.tests.models.conftest import CONFIGURATIONS


@pytest.mark.parametrize(("name", "plan"), [(name, plan) for name in CONFIGURATIONS for plan in ("fast", "faithful")])
def test_a_model_s_answers_have_no_more_bits_than_the_policy_says(tiny, name, plan):
    program = tiny(name, plan).compiled.program
    for number in program.outputs.values():
        item = program.instructions[number]
        assert item.op == "reveal"
        assert item.scale <= answer_bits(item.bound)
        assert 8 * item.bound * 2.0**item.scale < 2.0 ** (item.width - 1)  # as far as an answer is believed
        source = program.instructions[item.args[0]]
        assert item.width == item.attributes["ring"] - item.attributes["bits"] <= source.width - item.attributes["bits"]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_it_costs_a_round_and_a_few_bytes_an_element(tiny, name):
    program = tiny(name, "fast").compiled.program
    priced, bare = price(program), price(whole(program))
    elements = sum(math.prod(program.instructions[number].shape) for number in program.outputs.values())
    assert priced.rounds == bare.rounds + 1
    assert priced.up - bare.up <= 8 * elements
    assert priced.down < bare.down
    assert priced.offline_bytes - bare.offline_bytes <= 3 * elements


def whole(program: Program) -> Program:
    """With its results revealed as they are."""
    instructions = [
        x if x.op != "reveal" else x.model_copy(update={
            "attributes": {"to": "client"}, "width": program.instructions[x.args[0]].width
        })
        for x in program.instructions
    ]  # fmt: skip
    return program.model_copy(update={"instructions": tuple(instructions)})


@pytest.mark.parametrize(
    ("largest", "bits"), [(0.0, 13), (0.05, 17), (0.2, 15), (1.0, 13), (1.1, 12), (30.0, 12), (4096.0, 12), (1e6, 4)]
)
def test_the_policy(largest, bits):
    assert answer_bits(largest) == bits
    assert 2.0**-bits <= max(2.0**-12, 2.0**-23 * largest)
