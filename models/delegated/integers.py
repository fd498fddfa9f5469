"""A group's weights as integers of 16 bits, and what one unit of each output's row stands for.

A product of integers must stay below 2^31 in a ring of 32 bits, and is bounded by |q| |w| (Cauchy and Schwarz), so all
rows w get one norm: the square root of 2^31, which leaves the inputs as much. Then weights and inputs are rounded
alike, to about sqrt(inputs) / 160,000 of their size each; in a ring of 24 bits, to sqrt(inputs) / 10,000.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...approximations import Plan
from ...protocols.delegated import RING, RINGS
from .sequences import DelegationError

_MOST = 2**15 - 1
_CHUNK_NUMBERS = 2**17  # numbers that are widened to float64: 1 MB, which caches hold
_LEAST = torch.finfo(torch.float32).tiny  # below it float32 has fewer digits, and rows would get another norm


def ring_of(plan: Plan | str | None) -> int:
    """Bits of the ring. None: the plan "faithful". Errors: DelegationError."""
    return RINGS[plan_name(plan)]


def plan_name(plan: Plan | str | None) -> str:
    """The same, and its name."""
    if isinstance(plan, Plan) or (plan or "faithful") not in RINGS:
        name = "of your own" if isinstance(plan, Plan) else plan
        raise DelegationError(
            f"plan {name}: a public model runs as it is, in 32 bits (faithful) or 24 (fast); choose one of these"
        )
    return plan or "faithful"


def integers_of(matrix: Tensor, ring: int = RING) -> tuple[Tensor, Tensor]:
    """[outputs, inputs] -> (int16 of the same shape, float32 [outputs]). Errors: DelegationError."""
    norm = 2.0 ** ((ring - 1) / 2)
    integers = torch.empty(matrix.shape, dtype=torch.int16)
    scales = torch.empty(len(matrix), dtype=torch.float32)
    few = max(1, _CHUNK_NUMBERS // max(1, matrix.shape[1]))
    for rows, out, scale in zip(*(whole.split(few) for whole in (matrix, integers, scales)), strict=True):
        exact = rows.to(torch.float64)
        norms = torch.linalg.vecdot(exact, exact).sqrt_()
        if not bool(norms.isfinite().all()):
            raise DelegationError("weights: some are not finite; repair or download the model again")
        low, high = torch.aminmax(exact, dim=1)
        unit = torch.maximum(norms / norm, torch.maximum(-low, high) / _MOST)
        scale.copy_(torch.where(unit >= _LEAST, unit, 1.0))
        out.copy_(exact.div_(scale[:, None].double()).round_().clamp_(-_MOST, _MOST))
    return integers, scales
