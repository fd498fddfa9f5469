"""Polynomials of low degree on the calibrated range, without a cut: what an encryption scheme can evaluate.

There are no thresholds, so nothing bounds the result outside the range, and the error on a wide one is large: a student
has to be trained with the constants, and kept inside (models/distillation/ranges.py). A function that is x/2 plus an
even one, or odd, is fitted as such. The variable is x 2^-e, at most 1 on the range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import CalibrationError
from .minimax import minimax
from .normalisation import affine, centred
from .primitives import polynomial
from .registry import Constants, approximation

SOURCE = "Blindformer: minimax on the calibrated range"
_RANGE = (-8.0, 8.0)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * torch.erf(torch.from_numpy(x / math.sqrt(2))).numpy()


def _silu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * np.tanh(0.5 * x)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x)


@cache
def _even(part: Callable[[np.ndarray], np.ndarray], top: float, degree: int) -> tuple[int, list[float]]:
    """(e, coefficients in x 2^-e) of the even function on [-top, top]."""
    e = math.ceil(math.log2(top))
    found, _ = minimax(lambda u: part(2.0**e * np.sqrt(np.maximum(u, 0.0))), degree // 2, 0.0, (top * 2.0**-e) ** 2)
    return e, [c for pair in zip(found, [0.0] * len(found), strict=True) for c in pair][: degree + 1]


@cache
def _odd(function: Callable[[np.ndarray], np.ndarray], top: float, degree: int) -> tuple[int, list[float]]:
    """(e, coefficients in x 2^-e) of the odd function on [-top, top]."""
    e = math.ceil(math.log2(top))

    def quotient(u: np.ndarray) -> np.ndarray:
        y = np.sqrt(np.maximum(u, 1e-12))
        return function(2.0**e * y) / y

    found, _ = minimax(quotient, (degree - 1) // 2, 0.0, (top * 2.0**-e) ** 2, weight=np.sqrt)
    return e, [c for pair in zip([0.0] * len(found), found, strict=True) for c in pair]


def _top(low: float, high: float) -> float:
    return max(abs(low), abs(high), 2.0**-10)


def _gated(part: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Constants]:
    def fit(low: float, high: float, degree: float = 4) -> Constants:
        """x/2 plus an even polynomial, of least error on the range's larger side and its mirror image."""
        e, coefficients = _even(part, _top(low, high), max(2, int(degree)))
        coefficients = [*coefficients]
        coefficients[1] += 0.5 * 2.0**e
        return {"exponent": float(e), "coefficients": coefficients}

    return fit


def _saturating(function: Callable[[np.ndarray], np.ndarray], offset: float) -> Callable[..., Constants]:
    def fit(low: float, high: float, degree: float = 3) -> Constants:
        """An odd polynomial (and an offset) of least error on the range's larger side and its mirror image."""
        e, coefficients = _odd(function, _top(low, high), int(degree))
        return {"exponent": float(e), "coefficients": [offset, *coefficients[1:]]}

    return fit


def _registered(kind: str, fit: Callable[..., Constants], error: float) -> Callable[[Any], Any]:
    return approximation(
        kind,
        "polynomial",
        needs_distillation=True,
        source=SOURCE,
        error=error,
        domain=_RANGE,
        fit=fit,
        default_range=_RANGE,
    )


@_registered("gelu", _gated(_gelu), 0.262)
@_registered("silu", _gated(_silu), 0.195)
@_registered("tanh", _saturating(np.tanh, 0.0), 0.37)
@_registered("sigmoid", _saturating(_sigmoid, 0.5), 0.09)
def fitted(x: Tensor, *, exponent: float, coefficients: Sequence[float]) -> Tensor:
    """sum_k coefficients[k] (x 2^-exponent)^k."""
    return polynomial(x * 2.0**-exponent, coefficients)


def _power(root: float) -> Callable[..., Constants]:
    def fit(low: float, high: float, degree: float = 3) -> Constants:
        """The least relative error on [low, high]. The exponent is even, so that its root is a power of two too."""
        if not 0.0 < low <= high < math.inf:
            raise CalibrationError(
                f"a division needs a range of positive numbers, not [{low:g}, {high:g}]: calibrate again"
            )
        e = 2 * math.ceil(math.log2(high) / 2)
        low, high = low * 2.0**-e, max(high, low * (1 + 1e-6)) * 2.0**-e
        found, _ = minimax(lambda y: y**-root, int(degree), low, high, weight=lambda y: y**root)
        return {"exponent": float(e), "coefficients": found}

    return fit


@approximation(
    "reciprocal",
    "polynomial",
    needs_distillation=True,
    source=SOURCE,
    fit=_power(1.0),
    default_range=(0.5, 8.0),
)
def reciprocal(x: Tensor, *, exponent: float, coefficients: Sequence[float]) -> Tensor:
    """1/x for x in the fitted range."""
    return polynomial(x * 2.0**-exponent, coefficients) * 2.0**-exponent


@approximation(
    "rsqrt",
    "polynomial",
    needs_distillation=True,
    source=SOURCE,
    fit=_power(0.5),
    default_range=(0.25, 4.0),
)
def rsqrt(x: Tensor, *, exponent: float, coefficients: Sequence[float]) -> Tensor:
    """1/sqrt(x) for x in the fitted range."""
    return polynomial(x * 2.0**-exponent, coefficients) * 2.0 ** (-exponent / 2)


@approximation(
    "layer_norm",
    "polynomial",
    needs_distillation=True,
    source=SOURCE,
    fit=_power(0.5),
    default_range=(0.25, 4.0),
)
def layer_norm(
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
    return affine(difference * rsqrt(variance, exponent=exponent, coefficients=coefficients), weight, bias)


def fit_constant(low: float, high: float) -> Constants:
    """The reciprocal root of the range's geometric mean, which widening does not move."""
    if not 0.0 < low <= high < math.inf:
        raise CalibrationError(
            f"a division needs a range of positive numbers, not [{low:g}, {high:g}]: calibrate again"
        )
    return {"inverse_deviation": round((low * high) ** -0.25, 10)}


@approximation(
    "layer_norm",
    "affine",
    needs_distillation=True,
    source="Blindformer: a constant deviation, as BatchNorm has in inference (arXiv:1502.03167)",
    fit=fit_constant,
    default_range=(0.25, 4.0),
)
def folded_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    inverse_deviation: float,
) -> Tensor:
    """(x - mean) times a calibrated constant, times weight, plus bias: nothing but a linear map of x."""
    axes = list(range(-len(shape), 0))
    return affine((x - x.mean(axes, keepdim=True)) * inverse_deviation, weight, bias)
