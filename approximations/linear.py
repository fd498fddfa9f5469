"""Weights as small integers: symmetric, with power-of-two scales that cost nothing on secrets.

A weight of b bits is n 2^e with |n| < 2^(b-1) and one exponent e per output channel. Its product with a secret gains
only -e fractional bits, so fewer bits are opened, corrected and rescaled than for a weight of 16
(models/program/encoding.py).

The gain of a norm before the layer is folded into the weight on secrets (models/graph/passes/linears.py), so it is the
folded weight that has to be of few bits: `quantise_behind` rounds diag(gain) W and divides the gain out again.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import PlanError


@dataclass(frozen=True)
class AffineParameters:
    """What a norm applies to its normalised values, n gain + shift. `gain`: [features], up to a power of two."""

    gain: Tensor
    shift: Tensor | None


def quantise(weight: Tensor, bits: int, axis: int = 0) -> tuple[Tensor, Tensor]:
    """Integers n (int32, |n| < 2^(bits-1)) and exponents e (int32) with weight ~ n 2^e, to the nearest.

    The exponent is the least that makes the largest weight fit, one for each index of ``axis`` (shape
    [..., 1, n, 1, ...], broadcasting to the weight).
    A channel of small weights does not get a finer unit than the median channel: the finest one decides how many
    fractional bits the layer's result gains on secrets, and nothing is won by being more exact in a few channels.
    An error is at most 2^(e-1), where 2^e < 2 max|w| / (2^(bits-1) - 1) in every channel above the median.
    """
    integers, exponents = _quantise(weight.detach(), bits, axis)
    return integers.to(torch.int32), exponents.to(torch.int32)


def fake_quantise(weight: Tensor, bits: int, axis: int = 0) -> Tensor:
    """The quantised weight as floats, with the gradient of the identity (straight-through estimator).

    Y. Bengio et al., arXiv:1308.3432. The value is exactly n 2^e: weight - weight is an exact 0.
    """
    integers, exponents = _quantise(weight.detach(), bits, axis)
    return _straight_through(weight, integers * torch.exp2(exponents))


def quantise_behind(weight: Tensor, bits: int, norm: AffineParameters, axis: int = 0) -> tuple[Tensor, Tensor | None]:
    """For a linear layer that reads n gain + shift: (weight, what to add to the bias), both of them float.

    The weight times the gain is of few bits, up to float rounding. The shift's product with the weight is the owner's
    own matter and needs no quantised weight: the second result is shift (W - quantised W).
    weight: [outputs, inputs] for axis 0, [inputs, outputs] for axis 1. Gradients as for `fake_quantise`.
    """
    gain = norm.gain.detach().unsqueeze(axis)
    integers, exponents = _quantise(weight.detach() * gain, bits, axis)
    folded = unfold(integers * torch.exp2(exponents), gain)
    result = _straight_through(weight, folded)
    if norm.shift is None:
        return result, None
    lost = (weight - folded).detach()
    return result, lost @ norm.shift if axis == 0 else norm.shift @ lost


def unfold(folded: Tensor, gain: Tensor) -> Tensor:
    """folded / gain, 0 where the gain is."""
    return torch.where(gain == 0, 0.0, folded / gain)


def _straight_through(weight: Tensor, value: Tensor) -> Tensor:
    return value + (weight - weight.detach())


def _quantise(weight: Tensor, bits: int, axis: int) -> tuple[Tensor, Tensor]:
    if not 2 <= bits <= 24:
        raise PlanError(f"cannot quantise to {bits} bits: use 2 to 24")
    others = [d for d in range(weight.dim()) if d != axis % weight.dim()]
    largest = weight.abs().amax(others, keepdim=True) if others else weight.abs()
    limit = float(2 ** (bits - 1) - 1)
    # An all-zero channel has no scale of its own: the smallest normal number stands in for its largest weight.
    exponents = torch.ceil(torch.log2(largest.clamp_min(torch.finfo(weight.dtype).tiny * limit) * (1.0 / limit)))
    exponents = torch.maximum(exponents, exponents.flatten().median())
    # log2 may be off by a unit in the last place just above a power of two; clamping then costs less than that unit.
    return torch.round(weight * torch.exp2(-exponents)).clamp(-limit, limit), exponents
