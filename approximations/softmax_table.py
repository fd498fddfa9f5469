"""Softmax by tables: a maximum that is roughly right from cells, and e^x of what is left.

Softmax is the same whatever is taken off all scores of a row, so its maximum may be off by some. Scores lie in cells:
whether any of a row lies in a cell or above it is a bit, and how many of these are set is the highest cell with any.
All bits of a row are found at once, in as many rounds whatever the number of scores.

On secrets, one cell in 2^20 is missed (protocols/beaver/cells.py): the maximum is then a cell lower. Numerators and
their sum have room for one cell of a row that is missed.
"""

from __future__ import annotations

import math

from torch import Tensor

from .attention import none_kept
from .primitives import exp_by_cell, reached
from .registry import Constants, approximation
from .softmax import MOST, Parts

CELLS, FINE, COARSE = (
    128,
    1.0,
    2.0,
)  # of a maximum: e^cell is what the largest numerator may be below 1, and e^(2 cell) above
ROUNDED = 0.5  # what roundings may add to what is left of the largest score
EXP_CELL = 8.0  # longer ones take no fewer numbers, and leave their sums too few bits at once
DEPTH = 12.0  # e^-DEPTH of a row's largest is nearly 0


def fit_table(low: float, high: float) -> Constants:
    """Constants of `table` for logits in [low, high]."""
    return {"low": float(low), "high": float(high)}


@approximation(
    "softmax",
    "table",
    comparisons=1,
    source="Blindformer: lookup of maximum and exponential",
    error=1.1e-4,
    domain=(-40.0, 0.0),
    fit=fit_table,
    default_range=(-120.0, 120.0),
    least=0.99,
    most=MOST,
)
def table(scores: Tensor, keep: Tensor | None, scale: float = 1.0, *, low: float, high: float) -> Parts:
    """exp(x - m) for an m near the maximum."""
    x = scores * scale
    cell = FINE if (high - low) / FINE + 3 <= CELLS else COARSE
    below = x - _rough_maximum(x, keep, low, high, cell)
    top = 2 * cell  # of what is left: one cell for the rounding, one that is missed
    cells = _power_of_two((high - low + cell + top) / EXP_CELL + 2)
    depth = EXP_CELL * math.ceil((DEPTH + cell + top + ROUNDED) / EXP_CELL)
    numerators = exp_by_cell(below, top + ROUNDED + EXP_CELL - cells * EXP_CELL, EXP_CELL, cells, depth)
    numerators = numerators if keep is None else numerators * keep
    total = numerators.sum(-1, keepdim=True)
    bounds = (0.99 * math.exp(-cell), MOST * math.exp(top) * scores.shape[-1])
    return Parts(numerators, total if keep is None else total + none_kept(keep), bounds)


def _rough_maximum(x: Tensor, keep: Tensor | None, low: float, high: float, cell: float) -> Tensor:
    """No more than a cell from the largest of each row [..., keys] that is kept."""
    cells = _power_of_two((high - low) / cell + 3)
    start = cell * round((low + high) / 2 / cell - cells / 2)  # as much room below as above
    return start + cell * reached(x, keep, start, cell, cells).sum(-1, keepdim=True)


def _power_of_two(count: float) -> int:
    return 1 << math.ceil(math.log2(count))
