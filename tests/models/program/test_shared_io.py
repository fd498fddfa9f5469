"""A Program between other computations: shares in and out at one scale, the same numbers as the model's."""

import pytest
import torch
from blindformer.models.compile import compile
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.program import ProgramError
from blindformer.models.program.two_server import is_for_two_servers, with_shared_io
from blindformer.protocols.clear import ClearEngine
from blindformer.tests.models.conftest import clear
from torch import nn

BITS = 16


class Block(nn.Module):
    """Outputs whose own scale is above the shares' and below it, and an input at each side of it."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)

    def forward(self, x, gain):
        y = self.linear(x)
        return {"out": self.norm(nn.functional.gelu(y)).softmax(-1), "sum": y.sum(-1), "large": y * gain}


@pytest.fixture(scope="module")
def compiled():
    torch.manual_seed(0)
    batches = [{"x": torch.randn(3, 8), "gain": 500 * torch.randn(3, 1)} for _ in range(12)]
    return Block().eval(), batches[0], compile(Block().eval(), batches, "faithful")


def run(compiled, program, inputs):
    sources = {name: (value * 2.0**BITS).round().long() for name, value in inputs.items()}
    return interpret(program, ClearEngine({**sources, **compiled.weights, **compiled.constants})).outputs


def test_shares_at_sixteen_bits_give_what_the_program_gives(compiled):
    _, inputs, outputs = compiled
    program = with_shared_io(outputs.program, BITS)
    program.check()
    assert is_for_two_servers(program)
    scales = {item.scale for item in outputs.program.instructions if item.op == "client"}
    assert min(scales) < BITS < max(scales), "the case moves scales both ways"
    expected = clear(outputs, inputs)
    for name, value in run(outputs, program, inputs).items():
        error = (value.double() * 2.0**-BITS - expected[name].double()).abs().max()
        assert error < 0.002 * max(1.0, expected[name].abs().max()), name


def test_results_are_right_in_the_whole_ring(compiled):
    """CrypTen adds shares up modulo 2^64, so no byte of a result may be left out."""
    program = with_shared_io(compiled[2].program, BITS)
    ends = [item for item in program.instructions if item.op == "reveal"]
    assert [item.width for item in ends] == [64] * 3
    assert all(program.instructions[item.args[0]].width == 64 for item in ends)


def test_every_party_derives_the_same_program(compiled):
    assert with_shared_io(compiled[2].program, BITS).hash() == with_shared_io(compiled[2].program, BITS).hash()


def test_an_input_that_its_owner_prepares_is_refused(tiny_encoder):
    from blindformer.models.building import compile_lengths
    from blindformer.models.loading.load import load

    program = compile_lengths(load(tiny_encoder), [8], "faithful", texts=["my password is lost ."] * 2)[8].program
    with pytest.raises(ProgramError, match=r"its owner computes it in the clear .* compile only"):
        with_shared_io(program, BITS)
