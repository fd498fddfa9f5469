"""tanh: odd, and -1 or 1 far from zero."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .lowdegree import add_polynomial, saturating_fit
from .overrides import define_elementwise
from .piecewise import as_constants, as_pieces, fit_pieces, saturating
from .primitives import below, polynomial
from .registry import Constants, approximation

define_elementwise(
    "tanh",
    torch.tanh,
    Tensor.tanh,
    F.tanh,
    presets={"faithful": "piecewise", "fast": "piecewise", "he": "polynomial"},
    limit=6.0,
)


def _tail(x: float) -> float:
    return 1.0 - math.tanh(x)


def fit_tanh(low: float, high: float, degree: float = 4, pieces: float = 2) -> Constants:
    """Cuts and coefficients of least error. The range does not enter: outside the cut the value is -1 or 1."""
    cuts, coefficients, _ = fit_pieces(np.tanh, _tail, int(degree), int(pieces), odd=True, search=(1.5, 6.0))
    return as_constants(cuts, coefficients)


@approximation(
    "tanh",
    "piecewise",
    comparisons=4,
    source="Blindformer: x times a minimax polynomial in x^2 inside balanced cuts",
    error=0.001,
    domain=(-30.0, 30.0),
    fit=fit_tanh,
)
def piecewise(x: Tensor, *, cuts: list[float], inner: list[float], outer: list[float] | None = None) -> Tensor:
    """tanh(x) = x Q(x^2) inside the last cut, -1 below, 1 above. One piece (2 thresholds) errs by 0.006."""
    return saturating(x, cuts, as_pieces(inner, outer))


@approximation("tanh", "bolt", comparisons=3, source="BOLT, ePrint 2023/1893", error=0.0067, domain=(-10.0, 10.0))
def bolt(x: Tensor) -> Tensor:
    """A quintic in |x| for |x| <= 2.855, the sign of x outside; odd."""
    coefficients = [
        -0.0024920889620412097,
        1.0542492677156243,
        -0.17617532856475706,
        -0.20093640347818847,
        0.09948747962825866,
        -0.013232131886235352,
    ]
    upper, lower, negative = below(x, 2.855), below(x, -2.855), below(x, 0.0)
    sign = 1.0 - 2.0 * negative
    return (upper - lower) * sign * polynomial(x * sign, coefficients) + (1.0 - upper - lower)


add_polynomial("tanh", saturating_fit(np.tanh, 0.0), error=0.37)
