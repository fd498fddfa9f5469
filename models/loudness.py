"""How loud inputs were in calibration: a client compares its own with it before it sends anything.

A Program holds magnitudes with two bits to spare, and a plan's fits reach a little beyond what calibration saw. A norm
squares what it reads, so an input of twice the size leaves both, and fixed point then wraps without a word. Only the
client sees its inputs, and only the client has these figures; whoever else computes learns nothing of a refusal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import BlindformerError
from .lowering.client_graph import inputs_behind, run_prelude
from .program.program import Program

LOUDEST = 1.5  # times calibration's: measured, models with norms begin to be wrong between this and 2
Level = list[float]
"""The largest magnitude of a value, and the largest root mean square of its rows."""


class AnswerOutOfRange(BlindformerError):
    """A result too far outside the calibrated range to be trusted."""


class InputOutOfRange(AnswerOutOfRange):
    """An input too far outside the calibrated range for its answer to be trusted. Nothing of it was sent."""


def calibrated_levels(
    program: Program, tensors: Mapping[str, Tensor], batches: Iterable[Mapping[str, Any]]
) -> dict[str, Level]:
    """By name of the client's value, the levels of all that is made of inputs of real numbers. Of token ids, a table
    has the range."""
    levels: dict[str, Level] = {}
    for batch in batches:
        real = {n for n in program.inputs if isinstance(v := batch.get(n), Tensor) and v.is_floating_point()}
        names = [name for name, inputs in inputs_behind(program).items() if inputs & real]
        values = run_prelude(program, tensors, batch, names) if names else {}
        for name in names:
            level = _level(values[program.client[name]])
            levels[name] = [max(pair) for pair in zip(levels.get(name, level), level, strict=True)]
    return levels


def check_levels(program: Program, levels: Mapping[str, Level], values: Mapping[str, Tensor]) -> None:
    """`values`: the client's, by name. Errors: InputOutOfRange."""
    factors = {
        name: max(now / (calibrated or 1.0) for now, calibrated in zip(_level(values[name]), levels[name], strict=True))
        for name in levels.keys() & values.keys()
    }
    for name, factor in factors.items():
        if factor > LOUDEST:
            inputs = ", ".join(sorted(inputs_behind(program)[name]))
            raise InputOutOfRange(
                f"input {inputs}: is {factor:.3g} times as loud as in calibration, which may be {LOUDEST}; "
                "scale it down, or calibrate on inputs like it"
            )


def _level(value: Tensor) -> Level:
    rows = value.double().reshape(len(value) if value.dim() > 1 else 1, -1)
    if not rows.numel():
        return [0.0, 0.0]
    return [float(rows.abs().max()), float(torch.sqrt(rows.square().mean(1)).max())]
