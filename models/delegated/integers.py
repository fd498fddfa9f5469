"""A group's weights as integers of 16 bits, and what one unit of each output's row stands for.

A product of integers must stay below 2^31, and is bounded by |q| |w| (Cauchy and Schwarz), so all rows w get one norm:
the square root of 2^31, which leaves the inputs as much. Then weights and inputs are rounded alike, to about
sqrt(inputs) / 160,000 of their size each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...protocols.delegated import RING
from .sequences import DelegationError

NORM = 2.0 ** ((RING - 1) / 2)
_MOST = 2**15 - 1
_AT_ONCE = 2**17  # numbers that are widened to float64: 1 MB, which caches hold
_LEAST = torch.finfo(torch.float32).tiny  # below it float32 has fewer digits, and rows would get another norm


def integers_of(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """[outputs, inputs] -> (int16 of the same shape, float32 [outputs]). Errors: DelegationError."""
    integers = torch.empty(matrix.shape, dtype=torch.int16)
    scales = torch.empty(len(matrix), dtype=torch.float32)
    few = max(1, _AT_ONCE // max(1, matrix.shape[1]))
    for rows, out, scale in zip(*(whole.split(few) for whole in (matrix, integers, scales)), strict=True):
        exact = rows.to(torch.float64)
        norm = torch.linalg.vecdot(exact, exact).sqrt_()
        if not bool(norm.isfinite().all()):
            raise DelegationError("weights: some are not finite; repair or download the model again")
        low, high = torch.aminmax(exact, dim=1)
        unit = torch.maximum(norm / NORM, torch.maximum(-low, high) / _MOST)
        scale.copy_(torch.where(unit >= _LEAST, unit, 1.0))
        out.copy_(exact.div_(scale[:, None].double()).round_().clamp_(-_MOST, _MOST))
    return integers, scales
