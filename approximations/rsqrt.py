"""Reciprocal square root, and the RMSNorm around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .goldschmidt import SOURCE, TOLERANCE, fit_steps, iterate, require_positive, step_constants
from .linear import AffineParameters
from .lowdegree import LOW_DEGREE, power_fit
from .normalisation import affine, without_epsilons
from .overrides import Overrides, define_elementwise
from .primitives import polynomial
from .registry import EXACT, Approximation, Constants, Range, approximation


def _rms_norm(
    overrides: Overrides,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """x rsqrt(mean(x^2) + eps) weight, over the last dimensions. RMSNorm classes of transformers call rsqrt itself."""
    if overrides.observer is None and overrides.chosen("rsqrt") == EXACT:
        return func(input, normalized_shape, weight, eps)
    mean_square = (input * input).mean(list(range(-len(normalized_shape), 0)), keepdim=True)
    shifted = mean_square + (torch.finfo(input.dtype).eps if eps is None else eps)
    result = affine(input * overrides.elementwise("rsqrt", shifted, lambda: torch.rsqrt(shifted)), weight, None)
    if len(normalized_shape) == 1 and weight is not None:
        overrides.keep_affine(result, AffineParameters(weight, None))
    return result


def _fitted_range(seen: Range, widened: Range, whole: Approximation | None) -> Range | None:
    """None where a number is not above 0: it may well be no secret; if it is, lowering refuses."""
    return None if seen[0] <= 0 else widened


define_elementwise(
    "rsqrt",
    torch.rsqrt,
    Tensor.rsqrt,
    answers={F.rms_norm: _rms_norm, torch.rms_norm: _rms_norm},
    known="rsqrt",
    fitted_range=_fitted_range,
    presets={"faithful": "table", "fast": "table", "he": "polynomial"},
    spread=3.0,
    recorded=without_epsilons,
)


def fit_rsqrt(low: float, high: float, tolerance: float = TOLERANCE) -> Constants:
    """Constants of `rsqrt` for [low, high]. The exponent is even, so that its root is a power of two too.

    The start is the first step (p = 1, q = y): linear in y, and q a cubic in y.
    """
    require_positive(low, high)
    exponent = 2 * math.ceil(math.log2(high) / 2)
    first, *steps = fit_steps(2, math.sqrt(low * 2.0**-exponent), math.sqrt(high * 2.0**-exponent), tolerance, least=1)
    return step_constants(exponent, first, steps)


@approximation("rsqrt", "goldschmidt", source=SOURCE, fit=fit_rsqrt, default_range=(2.0**-8, 2.0**8))
def rsqrt(x: Tensor, *, exponent: float, start: list[float], offsets: list[float], slopes: list[float]) -> Tensor:
    """1/sqrt(x) for x in the fitted range."""
    y = x * 2.0**-exponent
    first = polynomial(y, start)
    return iterate(first, (y * first) * first, offsets, slopes, _cubic) * 2.0 ** (-exponent / 2)


def _cubic(a: float, b: float) -> list[float]:
    """Coefficients of q (a + b q)^2: one opening of q instead of two products in a row."""
    return [0.0, a * a, 2.0 * a * b, b * b]


@approximation(
    "rsqrt", "polynomial", needs_distillation=True, source=LOW_DEGREE, fit=power_fit(0.5), default_range=(0.25, 4.0)
)
def low_degree_rsqrt(x: Tensor, *, exponent: float, coefficients: Sequence[float]) -> Tensor:
    """1/sqrt(x) for x in the fitted range."""
    return polynomial(x * 2.0**-exponent, coefficients) * 2.0 ** (-exponent / 2)
