"""LayerNorm and RMSNorm around a reciprocal square root that is fitted to the calibrated variances."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .goldschmidt import SOURCE, fit_rsqrt, rsqrt
from .registry import approximation


def centred(x: Tensor, shape: Sequence[int], eps: float) -> tuple[Tensor, Tensor]:
    """(x - mean, variance + eps) over the last dimensions ``shape``."""
    axes = list(range(-len(shape), 0))
    difference = x - x.mean(axes, keepdim=True)
    return difference, (difference * difference).mean(axes, keepdim=True) + eps


def affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x weight + bias, either of them optional."""
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


@approximation("layer_norm", "goldschmidt", source=SOURCE, fit=fit_rsqrt, default_range=(2.0**-8, 2.0**8))
def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    exponent: float,
    start: list[float],
    offsets: list[float],
    slopes: list[float],
) -> Tensor:
    """(x - mean) rsqrt(variance + eps) weight + bias; the fitted range is that of variance + eps."""
    difference, variance = centred(x, shape, eps)
    inverse_root = rsqrt(variance, exponent=exponent, start=start, offsets=offsets, slopes=slopes)
    return affine(difference * inverse_root, weight, bias)


def rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float, inverse_root: Callable[[Tensor], Tensor]
) -> Tensor:
    """x inverse_root(mean(x^2) + eps) weight."""
    mean_square = (x * x).mean(list(range(-len(shape), 0)), keepdim=True)
    return affine(x * inverse_root(mean_square + eps), weight, None)
