"""exp on the calibrated range."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .lowdegree import LOW_DEGREE
from .minimax import minimax
from .overrides import define_elementwise
from .primitives import above, polynomial
from .registry import Constants, approximation
from .softmax import exp_coefficients, exp_exponent, squared

CUT = 12.0


define_elementwise(
    "exp",
    torch.exp,
    Tensor.exp,
    presets={"faithful": "squared", "fast": "squared", "he": "polynomial"},
    operations=("exp", "elu", "selu"),
    limit=4.0,
    known="exp",
)


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
    source="Blindformer: minimax of exp(x/4), weighted for two squarings",
    error=1.01e-4,
    domain=(-40.0, 0.0),
    fit=fit_squared,
    default_range=(-8.0, 0.0),
)
def squared_exp(x: Tensor, *, top: float, coefficients: list[float], squarings: float) -> Tensor:
    """exp(top) exp(x - top), x up to the top of its range, where the error is 1e-4 exp(top); 0 far below it."""
    shift = 2.0 ** -(exp_exponent(CUT, int(squarings)) + int(squarings))
    below_top = x - top
    base = polynomial(below_top * shift, coefficients, domain=CUT * shift) * above(below_top, -CUT)
    return squared(base, squarings) * math.exp(top)


def fit_polynomial(low: float, high: float, degree: float = 4) -> Constants:
    """Least error on [low, high]."""
    e = math.ceil(math.log2(max(abs(low), abs(high), 2.0**-10)))
    found, _ = minimax(lambda y: np.exp(2.0**e * y), int(degree), low * 2.0**-e, max(high, low + 1e-3) * 2.0**-e)
    return {"exponent": float(e), "coefficients": list(found)}


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
