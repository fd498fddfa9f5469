"""exp on the calibrated range; and below zero, as softmax uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

from .attention import INFINITE
from .lowdegree import LOW_DEGREE
from .minimax import minimax
from .overrides import define_elementwise
from .primitives import above, polynomial
from .registry import Constants, approximation

CUT = 12.0


def _finite(values: Tensor) -> Tensor:
    """Minus infinity, and what stands for it, is 0 afterwards whatever the range."""
    kept = values[values > INFINITE]
    return kept if kept.numel() else torch.zeros(1)


@cache
def exp_coefficients(cut: float, degree: int, squarings: int) -> tuple[float, ...]:
    """P with least E = max |P(y)^n - exp(n c y)|, n = 2^squarings, over y = x / (n c) for x in [-cut, 0].

    E is the one for which P may be off by no more than moves exp by E, and just can: found by bisection, as the band
    that E allows around exp(c y) is wide where exp(n c y) is small, and not proportional to E there.
    """
    n, c = 2.0**squarings, 2.0 ** _exp_exponent(cut, squarings)
    low, high = -9.0, 0.0  # log10 of E
    coefficients: list[float] = []
    for _ in range(24):
        middle = (low + high) / 2
        band = 10.0**middle
        coefficients, excess = minimax(
            lambda y: np.exp(c * y),
            degree,
            -cut / n / c,
            0.0,
            weight=lambda y, band=band: 1 / ((np.exp(n * c * y) + band) ** (1 / n) - np.exp(c * y)),
        )
        low, high = (middle, high) if excess > 1 else (low, middle)
    return tuple(coefficients)


def _exp_exponent(cut: float, squarings: int) -> int:
    return math.ceil(math.log2(cut) - squarings)


_ABOVE = 2.0  # the most that a range goes on above what was seen: the error is of the largest value that there may be


define_elementwise(
    "exp",
    torch.exp,
    Tensor.exp,
    presets={"faithful": "squared", "fast": "squared", "he": "polynomial"},
    operations=("exp", "elu", "selu"),
    fitted_range=lambda seen, widened, whole: (widened[0], min(widened[1], seen[1] + _ABOVE)),
    limit=4.0,
    known="exp",
    recorded=_finite,
)


def exp_below_zero(x: Tensor, cut: float, coefficients: Sequence[float], squarings: float) -> Tensor:
    """P(x/4)^4 above -cut, 0 below it.

    The bit multiplies before the squarings: garbage from below the cut must not meet a product that is rescaled.
    """
    shift = 2.0 ** -(_exp_exponent(cut, int(squarings)) + int(squarings))
    return squared(polynomial(x * shift, coefficients, domain=cut * shift) * above(x, -cut), squarings)


def squared(x: Tensor, times: float) -> Tensor:
    for _ in range(int(times)):
        x = x * x
    return x


def fit_squared(low: float, high: float, degree: float = 4, squarings: float = 2) -> Constants:
    """Constants of `exp` below `high`."""
    return {
        "top": float(high),
        "coefficients": list(exp_coefficients(CUT, int(degree), int(squarings))),
        "squarings": float(int(squarings)),
    }


@approximation(
    "exp",
    "squared",
    comparisons=1,
    source="Blindformer: weighted minimax of exp(x/4)",
    error=1.01e-4,
    domain=(-40.0, 0.0),
    fit=fit_squared,
    default_range=(-8.0, 0.0),
)
def squared_exp(x: Tensor, *, top: float, coefficients: list[float], squarings: float) -> Tensor:
    """exp(top) exp(x - top), x up to the top of its range, where the error is 1e-4 exp(top); 0 far below it."""
    return exp_below_zero(x - top, CUT, coefficients, squarings) * math.exp(top)


def fit_polynomial(low: float, high: float, degree: float = 4) -> Constants:
    """Least error on [low, high]."""
    e = math.ceil(math.log2(max(abs(low), abs(high), 2.0**-10)))
    coefficients, _ = minimax(lambda y: np.exp(2.0**e * y), int(degree), low * 2.0**-e, max(high, low + 1e-3) * 2.0**-e)
    return {"exponent": float(e), "coefficients": list(coefficients)}


@approximation(
    "exp",
    "polynomial",
    needs_distillation=True,
    source=LOW_DEGREE,
    error=0.0028,
    domain=(-4.0, 0.0),
    fit=fit_polynomial,
    default_range=(-4.0, 0.0),
)
def low_degree_exp(x: Tensor, *, exponent: float, coefficients: Sequence[float]) -> Tensor:
    """exp(x) for x in the fitted range."""
    return polynomial(x * 2.0**-exponent, coefficients)
