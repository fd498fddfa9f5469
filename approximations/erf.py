"""erf: odd, and -1 or 1 far from zero."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .fourier import SOURCE, fit_series, odd, saturating
from .lowdegree import add_polynomial, saturating_fit
from .overrides import define_elementwise
from .registry import Constants, approximation

define_elementwise(
    "erf",
    torch.erf,
    Tensor.erf,
    torch.special.erf,
    presets={"faithful": "fourier", "fast": "fourier", "he": "polynomial"},
    limit=4.0,
    known="erf",
)


# Not torch's: within an approximated model that is answered by an approximation, and fits may be made there.
exact_erf = np.vectorize(math.erf, otypes=[np.float64])


def fit_erf(low: float, high: float, terms: float = 8) -> Constants:
    """The cut and the series of least error. The range does not enter: outside the cut the value is -1 or 1."""
    return fit_series(exact_erf, math.erfc, int(terms), odd=True, search=(1.0, 4.0))


@approximation("erf", "fourier", comparisons=2, source=SOURCE, error=0.000085, domain=(-20.0, 20.0), fit=fit_erf)
def series(x: Tensor, *, cut: float, period: float, terms: list[float]) -> Tensor:
    """erf(x) = a sum of sines inside the cut, -1 below it, 1 above it."""
    return saturating(x, cut, odd(x, cut, period, terms))


add_polynomial("erf", saturating_fit(exact_erf, 0.0), error=0.43)
