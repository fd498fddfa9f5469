"""Polynomials of low degree on the calibrated range, without a cut: what an encryption scheme can evaluate.

There are no thresholds, so nothing bounds the result outside the range, and the error on a wide one is large: a student
has to be trained with the constants, and kept inside (models/distillation/ranges.py). A function that is x/2 plus an
even one, or odd, is fitted as such. The variable is x 2^-e, at most 1 on the range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from torch import Tensor

from .goldschmidt import require_positive
from .minimax import minimax
from .primitives import polynomial
from .registry import Constants, approximation

LOW_DEGREE = "Blindformer: calibrated minimax"
_RANGE = (-8.0, 8.0)


@cache
def _even(part: Callable[[np.ndarray], np.ndarray], top: float, degree: int) -> tuple[int, list[float]]:
    """(e, coefficients in x 2^-e) of the even function on [-top, top]."""
    e = math.ceil(math.log2(top))
    coefficients, _ = minimax(
        lambda u: part(2.0**e * np.sqrt(np.maximum(u, 0.0))), degree // 2, 0.0, (top * 2.0**-e) ** 2
    )
    return e, [c for pair in zip(coefficients, [0.0] * len(coefficients), strict=True) for c in pair][: degree + 1]


@cache
def _odd(function: Callable[[np.ndarray], np.ndarray], top: float, degree: int) -> tuple[int, list[float]]:
    """(e, coefficients in x 2^-e) of the odd function on [-top, top]."""
    e = math.ceil(math.log2(top))

    def quotient(u: np.ndarray) -> np.ndarray:
        y = np.sqrt(np.maximum(u, 1e-12))
        return function(2.0**e * y) / y

    coefficients, _ = minimax(quotient, (degree - 1) // 2, 0.0, (top * 2.0**-e) ** 2, weight=np.sqrt)
    return e, [c for pair in zip([0.0] * len(coefficients), coefficients, strict=True) for c in pair]


def _top(low: float, high: float) -> float:
    return max(abs(low), abs(high), 2.0**-10)


def gated_fit(part: Callable[[np.ndarray], np.ndarray]) -> Callable[..., Constants]:
    def fit(low: float, high: float, degree: float = 4) -> Constants:
        """x/2 plus an even polynomial, of least error on the range's larger side and its mirror image."""
        e, coefficients = _even(part, _top(low, high), max(2, int(degree)))
        coefficients = [*coefficients]
        coefficients[1] += 0.5 * 2.0**e
        return {"exponent": float(e), "coefficients": coefficients}

    return fit


def saturating_fit(function: Callable[[np.ndarray], np.ndarray], offset: float) -> Callable[..., Constants]:
    def fit(low: float, high: float, degree: float = 3) -> Constants:
        """An odd polynomial (and an offset) of least error on the range's larger side and its mirror image."""
        e, coefficients = _odd(function, _top(low, high), int(degree))
        return {"exponent": float(e), "coefficients": [offset, *coefficients[1:]]}

    return fit


def power_fit(root: float) -> Callable[..., Constants]:
    def fit(low: float, high: float, degree: float = 3) -> Constants:
        """The least relative error on [low, high]. The exponent is even, so that its root is a power of two too."""
        require_positive(low, high)
        e = 2 * math.ceil(math.log2(high) / 2)
        low, high = low * 2.0**-e, max(high, low * (1 + 1e-6)) * 2.0**-e
        coefficients, _ = minimax(lambda y: y**-root, int(degree), low, high, weight=lambda y: y**root)
        return {"exponent": float(e), "coefficients": coefficients}

    return fit


def fitted(x: Tensor, *, exponent: float, coefficients: Sequence[float]) -> Tensor:
    """sum_k coefficients[k] (x 2^-exponent)^k."""
    return polynomial(x * 2.0**-exponent, coefficients)


def add_polynomial(kind: str, fit: Callable[..., Constants], error: float) -> None:
    """The approximation `polynomial` of an elementwise kind; ``error``: by the default degree on the default range."""
    facts = {"error": error, "domain": _RANGE, "fit": fit, "default_range": _RANGE}
    approximation(kind, "polynomial", needs_distillation=True, source=LOW_DEGREE, **facts)(fitted)
