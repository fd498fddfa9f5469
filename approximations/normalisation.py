"""What LayerNorm and RMSNorm share: means, the affine after them, and what calibration reads of their variances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_EPSILONS = [10.0**-digits for digits in range(4, 13)]  # what a norm adds to the variance, which is 0 of zeros


def centred(x: Tensor, shape: Sequence[int], eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean, variance + eps) over the last dimensions ``shape``."""
    axes = list(range(-len(shape), 0))
    difference = x - x.mean(axes, keepdim=True)
    return difference, (difference * difference).mean(axes, keepdim=True) + eps


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x weight + bias, either of them optional."""
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def without_epsilons(variances: Tensor) -> Tensor:
    """The variances of rows that are not zero. Attention that sees no key gives zeros, whose norm is zeros whatever the
    factor."""
    epsilons = torch.tensor(_EPSILONS, dtype=variances.dtype, device=variances.device)
    others = variances[~torch.isin(variances, epsilons)]
    return others if others.numel() else variances
