"""The least ring that holds a program at 128 bits, and the program's circuit in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .circuit import Circuit, parameters_of, too_deep
from .packing import packing_for
from .parameters import MOST_BITS, CkksError, Parameters
from .planner import Planner
from .values import PlannedInstruction

Array = np.ndarray


def plan(
    instructions: Sequence[PlannedInstruction],
    outputs: Mapping[str, int],
    known: Mapping[str, Array],
    clients: Mapping[str, str],
) -> tuple[Circuit, Parameters]:
    """The circuit of a program and its parameters, in the least ring that holds it at 128 bits.

    Errors: TooDeep, which says by how many levels and from which layer on; CkksError for a program of another kind.
    """
    error: CkksError | None = None
    for candidate in sorted(MOST_BITS):
        try:
            circuit = circuit_of(instructions, outputs, known, clients, candidate // 2)
        except CkksError as problem:
            error = problem
            continue
        error = too_deep(circuit)
        parameters = parameters_of(circuit)
        if parameters is not None:
            return circuit, parameters
    assert error is not None
    raise error


def circuit_of(
    instructions: Sequence[PlannedInstruction],
    outputs: Mapping[str, int],
    known: Mapping[str, Array],
    clients: Mapping[str, str],
    slots: int,
) -> Circuit:
    """The circuit in a ring of so many slots. Errors: CkksError."""
    sources = [item.shape for item in instructions if item.op == "client" and len(item.shape) >= 2]
    products = [item for item in instructions if item.op == "matmul"]
    rows = [item.shape for item in instructions if item.op in ("linear", "matmul", "reveal") and len(item.shape) >= 2]
    if not sources or not rows:
        raise CkksError("the program has no inputs, or no layer; ckks runs Transformers")
    texts = sources[0][0]
    tokens = max([1, *(item.shape[-2] for item in products), *(s[1] for s in rows if len(s) == 3)])
    widths = [shape[-1] for shape in sources if len(shape) == 3]
    narrow = [item.shape[-1] for item in instructions if item.op == "linear" and len(item.shape) == 3]
    features = max(widths) if widths else min(narrow, default=1)  # of an image, those that its layers pass on
    several = any(len(item.shape) >= 2 and item.shape[-2] > 1 for item in products)
    packing = packing_for(slots, texts, tokens, features, several)
    return Planner(instructions, known, clients, packing).run(outputs)
