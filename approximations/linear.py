"""Weights as small integers: symmetric, with power-of-two scales that cost nothing on secrets."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import PlanError


def quantise(weight: Tensor, bits: int, per_channel: bool = True, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Integers n (int32, |n| < 2^(bits-1)) and exponents e (int32) with weight ~ n 2^e, to the nearest.

    The exponent is the least that makes the largest weight fit, one for each index of ``axis`` (shape
    [..., 1, n, 1, ...], broadcasting to the weight) or, with per_channel=False, one for all (shape [1, ..., 1]).
    An error is at most 2^(e-1), where 2^e < 2 max|w| / (2^(bits-1) - 1).
    """
    integers, exponents = _quantise(weight.detach(), bits, per_channel, axis)
    return integers.to(torch.int32), exponents.to(torch.int32)


def fake_quantise(weight: Tensor, bits: int, per_channel: bool = True, axis: int = 0) -> Tensor:
    """The quantised weight as floats, with the gradient of the identity (straight-through estimator).

    Y. Bengio et al., arXiv:1308.3432. The value is exactly n 2^e: weight - weight is an exact 0.
    """
    integers, exponents = _quantise(weight.detach(), bits, per_channel, axis)
    return integers * torch.exp2(exponents) + (weight - weight.detach())


def _quantise(weight: Tensor, bits: int, per_channel: bool, axis: int) -> tuple[Tensor, Tensor]:
    if not 2 <= bits <= 24:
        raise PlanError(f"cannot quantise to {bits} bits: use 2 to 24")
    others = [d for d in range(weight.dim()) if not per_channel or d != axis % weight.dim()]
    largest = weight.abs().amax(others, keepdim=True) if others else weight.abs()
    limit = float(2 ** (bits - 1) - 1)
    # An all-zero channel has no scale of its own: the smallest normal number stands in for its largest weight.
    exponents = torch.ceil(torch.log2(largest.clamp_min(torch.finfo(weight.dtype).tiny * limit) * (1.0 / limit)))
    # log2 may be off by a unit in the last place just above a power of two; clamping then costs less than that unit.
    return torch.round(weight * torch.exp2(-exponents)).clamp(-limit, limit), exponents
