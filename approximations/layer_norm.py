"""LayerNorm: around a reciprocal square root that is fitted to the calibrated variances, or a linear map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .goldschmidt import SOURCE, require_positive
from .linear import AffineParameters
from .lowdegree import LOW_DEGREE, power_fit
from .normalisation import affine, centred, without_epsilons
from .overrides import Overrides
from .registry import Constants, approximation, define_kind
from .rsqrt import fit_rsqrt, low_degree_rsqrt, rsqrt


def _answer(
    overrides: Overrides,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Over the last dimensions ``normalized_shape``. Calibration sees the variance + eps."""
    shape, site = tuple(normalized_shape), overrides.site("layer_norm")
    if overrides.observer is not None:
        overrides.show(site, "layer_norm", centred(input, shape, eps)[1])
    chosen, constants = overrides.approximation("layer_norm", site)
    if chosen.function is None:
        result = F.layer_norm(input, normalized_shape, weight, bias, eps)
    else:
        result = chosen.function(input, shape, weight, bias, eps, **constants)
    if len(shape) == 1 and weight is not None:
        # Lowering leaves the odd part of the mean's 1 / features with the gain (models/graph/passes/scalars.py).
        overrides.keep_affine(result, AffineParameters(weight / _odd_part(shape[0]), bias))
    return result


def _odd_part(n: int) -> int:
    return n // (n & -n)


define_kind(
    "layer_norm",
    answers={F.layer_norm: _answer, torch.layer_norm: _answer},
    presets={"faithful": "table", "fast": "table", "he": "affine"},
    spread=3.0,
    recorded=without_epsilons,
)


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


@approximation(
    "layer_norm",
    "polynomial",
    needs_distillation=True,
    source=LOW_DEGREE,
    fit=power_fit(0.5),
    default_range=(0.25, 4.0),
)
def low_degree_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    exponent: float,
    coefficients: Sequence[float],
) -> Tensor:
    """(x - mean) P(variance + eps) weight + bias."""
    difference, variance = centred(x, shape, eps)
    return affine(difference * low_degree_rsqrt(variance, exponent=exponent, coefficients=coefficients), weight, bias)


def fit_constant(low: float, high: float) -> Constants:
    """The reciprocal root of the range's geometric mean, which widening does not move."""
    require_positive(low, high)
    return {"inverse_deviation": round((low * high) ** -0.25, 10)}


@approximation(
    "layer_norm",
    "affine",
    needs_distillation=True,
    source="Blindformer: constant deviation, as in BatchNorm (arXiv:1502.03167)",
    fit=fit_constant,
    default_range=(0.25, 4.0),
)
def folded_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float, *, inverse_deviation: float
) -> Tensor:
    """(x - mean) times a calibrated constant, times weight, plus bias: nothing but a linear map of x."""
    axes = list(range(-len(shape), 0))
    return affine((x - x.mean(axes, keepdim=True)) * inverse_deviation, weight, bias)
