"""softplus, log(1 + exp(x)): x/2 and an even part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .fourier import SOURCE, even, fit_series, gated
from .lowdegree import add_polynomial, gated_fit
from .overrides import Overrides, define_elementwise
from .registry import Constants, approximation


def _answer(overrides: Overrides, func: Any, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Torch is linear above the threshold, where the difference does not show."""
    return overrides.elementwise("softplus", input, lambda: func(input, beta, threshold), float(beta))


define_elementwise(
    "softplus",
    F.softplus,
    answers={F.softplus: _answer},
    presets={"faithful": "fourier", "fast": "fourier", "he": "polynomial"},
    limit=8.0,
    known="softplus",
)


def _even_part(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x) - 0.5 * x


def _tail(x: float) -> float:
    return math.log1p(math.exp(-x))


def fit_softplus(low: float, high: float, terms: float = 8) -> Constants:
    """The cut and the series of least error. The range does not enter: the tails are 0 and x outside the cut."""
    return fit_series(_even_part, _tail, int(terms), odd=False, search=(3.0, 12.0))


@approximation(
    "softplus", "fourier", comparisons=2, source=SOURCE, error=0.000185, domain=(-40.0, 40.0), fit=fit_softplus
)
def series(x: Tensor, *, cut: float, period: float, terms: list[float]) -> Tensor:
    """x/2 + even(x) inside the cut, 0 below it, x above it."""
    return gated(x, cut, even(x, cut, period, terms))


add_polynomial("softplus", gated_fit(_even_part), error=0.08)
