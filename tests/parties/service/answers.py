"""What a compiled part says in the clear: the same program and fixed point, without secrets."""

from __future__ import annotations

import torch
from blindformer.models.compile import decode_outputs
from blindformer.models.program.interpreter import interpret
from blindformer.protocols.clear import ClearEngine


def clear(part, sources):
    """`part`: with program, weights and constants. Its outputs, decoded."""
    engine = ClearEngine({**sources, **part.weights, **part.constants})
    return decode_outputs(part.program, interpret(part.program, engine).outputs)


def check(outputs, expected) -> None:
    assert outputs.keys() == expected.keys()
    for name in outputs:
        torch.testing.assert_close(outputs[name].double(), expected[name].double(), atol=0.003, rtol=0)
