"""softplus, log(1 + exp(x)): x/2 and an even part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .lowdegree import add_polynomial, gated_fit
from .overrides import Overrides, define_elementwise
from .piecewise import as_constants, as_pieces, fit_pieces, gated
from .registry import Constants, approximation


def _answer(overrides: Overrides, func: Any, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Torch is linear above the threshold, where the difference does not show."""
    return overrides.elementwise("softplus", input, lambda: func(input, beta, threshold), float(beta))


define_elementwise(
    "softplus",
    F.softplus,
    answers={F.softplus: _answer},
    presets={"faithful": "piecewise", "fast": "piecewise", "he": "polynomial"},
    limit=8.0,
    known="softplus",
)


def _even_part(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x) - 0.5 * x


def _tail(x: float) -> float:
    return math.log1p(math.exp(-x))


def fit_softplus(low: float, high: float, degree: float = 4, pieces: float = 2) -> Constants:
    """Cuts and coefficients of least error. The range does not enter: the tails are 0 and x outside the cut."""
    cuts, coefficients, _ = fit_pieces(_even_part, _tail, int(degree), int(pieces), odd=False, search=(3.0, 12.0))
    return as_constants(cuts, coefficients)


@approximation(
    "softplus",
    "piecewise",
    comparisons=4,
    source="Blindformer: minimax in x^2 inside balanced cuts",
    error=0.00037,
    domain=(-40.0, 40.0),
    fit=fit_softplus,
)
def piecewise(x: Tensor, *, cuts: list[float], inner: list[float], outer: list[float] | None = None) -> Tensor:
    """x/2 + even(x) inside the last cut, 0 below, x above."""
    return gated(x, cuts, as_pieces(inner, outer))


add_polynomial("softplus", gated_fit(_even_part), error=0.08)
