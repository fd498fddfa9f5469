"""Softmax by tables: a maximum that is roughly right from counts of cells, and e^x of what is left.

Softmax is the same whatever is taken off all scores of a row, so its maximum may be off by some. Scores are counted by
cells of `CELL`: how many lie in a cell or above it is a sum of what a table says of each, without a message; and the
highest cell with any is the number of cells whose count is above 0. So the maximum of any number of scores takes the
rounds of one comparison. A number for each cell and score is the price, so many scores take a tournament.
"""

from __future__ import annotations

import math

from torch import Tensor

from .attention import none_kept
from .plan import FEW
from .primitives import above, exp_by_cell, tail_counts
from .registry import Constants, approximation
from .softmax import MOST, Parts, gap_of, maximum

CELL = 2.0  # of a maximum: e^CELL is what a numerator may be above or below 1
ROUNDED = 0.5  # what roundings may add to what is left of the largest score
EXP_CELL, EXP_CELL_OF_MANY = 8.0, 16.0  # longer ones take fewer numbers, and leave their sums too few bits at once


def fit_table(low: float, high: float, few: float = FEW) -> Constants:
    """Constants of `table` for logits in [low, high]; of more scores than `few` it takes a tournament."""
    return {"gap": gap_of(low, high), "low": float(low), "high": float(high), "few": float(few)}


@approximation(
    "softmax",
    "table",
    comparisons=1,
    source="Blindformer: counts by cells, and a dealer's shares of e^-mask by its cell",
    error=1.1e-4,
    domain=(-40.0, 0.0),
    fit=fit_table,
    default_range=(-120.0, 120.0),
    least=0.99,
    most=MOST,
)
def table(
    scores: Tensor, keep: Tensor | None, scale: float = 1.0, *, gap: float, low: float, high: float, few: float
) -> Parts:
    """exp(x - m) for an m near the maximum."""
    x = scores * scale
    many = scores.numel() > few
    rough, cell = (0.0, EXP_CELL_OF_MANY) if many else (CELL, EXP_CELL)
    below = x - (maximum(x, keep, gap) if many else _rough_maximum(x, keep, low, high))
    cells = _power_of_two((high - low + 2 * rough) / cell + 2)
    numerators = exp_by_cell(below, rough + ROUNDED + cell - cells * cell, cell, cells)
    numerators = numerators if keep is None else numerators * keep
    total = numerators.sum(-1, keepdim=True)
    bounds = (0.99 * math.exp(-rough), MOST * math.exp(rough) * scores.shape[-1])
    return Parts(numerators, total if keep is None else total + none_kept(keep), bounds)


def _rough_maximum(x: Tensor, keep: Tensor | None, low: float, high: float) -> Tensor:
    """No more than CELL from the largest of each row [..., keys] that is kept."""
    cells = _power_of_two((high - low) / CELL + 3)
    start = CELL * round((low + high) / 2 / CELL - cells / 2)  # as much room below as above
    reached = tail_counts(x, keep, start, CELL, cells)
    return start + CELL * above(reached, 0.5).sum(-1, keepdim=True)


def _power_of_two(count: float) -> int:
    return 1 << math.ceil(math.log2(count))
