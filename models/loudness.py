"""How loud inputs were in calibration: a client compares its own with it before it sends anything.

A Program holds magnitudes with two bits to spare, and a plan's fits reach a little beyond what calibration saw. A norm
squares what it reads, so an input of twice the size leaves both, and fixed point then wraps without a word; a ReLU
bears more. So compiling asks the program itself. Only the client sees its inputs, and only the client has these
figures; whoever else computes learns nothing of a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ..errors import BlindformerError
from .lowering.client_graph import inputs_behind, run_prelude
from .program.program import Program

LOUDER = (1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0)  # times calibration's: the first is what every model bears
_AS_WRONG = 2.0**-8  # of the largest answer: by so much more than usual
Level = list[float]
"""Of a value the largest magnitude, the largest root mean square of its rows, and how many times both may be."""


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
            levels[name] = [*map(max, levels.get(name, level), level), LOUDER[0]]
    return levels


def loudest(error: Callable[[float], float]) -> float:
    """The largest factor beyond which another one, too, gives right answers, since other inputs may be wrong earlier.
    `error`: of the answers to an input that is so many times as loud, relative to the largest answer."""
    usual = error(1.0)
    right = list(takewhile(lambda factor: error(factor) <= 2 * usual + _AS_WRONG < math.inf, LOUDER))
    return right[-1] if len(right) == len(LOUDER) else LOUDER[max(0, len(right) - 2)]


def check_levels(program: Program, levels: Mapping[str, Level], values: Mapping[str, Tensor]) -> None:
    """`values`: the client's, by name. Errors: InputOutOfRange."""
    for name in sorted(levels.keys() & values.keys()):
        peak, mean, most = levels[name]
        now = _level(values[name])
        factor = max(now[0] / (peak or 1.0), now[1] / (mean or 1.0))
        if factor > most:
            inputs = ", ".join(sorted(inputs_behind(program)[name]))
            raise InputOutOfRange(
                f"input {inputs}: is {factor:.3g} times as loud as in calibration (at most {most:g}); scale it down"
            )


def _level(value: Tensor) -> Level:
    rows = value.double().reshape(len(value) if value.dim() > 1 else 1, -1)
    if not rows.numel():
        return [0.0, 0.0]
    return [float(rows.abs().max()), float(torch.sqrt(rows.square().mean(1)).max())]
