"""erf: odd, and -1 or 1 far from zero."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .lowdegree import add_polynomial, saturating_fit
from .overrides import define_elementwise
from .piecewise import as_constants, as_pieces, fit_pieces, saturating
from .registry import Constants, approximation

define_elementwise(
    "erf",
    torch.erf,
    Tensor.erf,
    torch.special.erf,
    presets={"faithful": "piecewise", "fast": "piecewise", "he": "polynomial"},
    limit=4.0,
    known="erf",
)


def _erf(x: np.ndarray) -> np.ndarray:
    return torch.erf(torch.from_numpy(np.asarray(x, dtype=np.float64))).numpy()


def fit_erf(low: float, high: float, degree: float = 4, pieces: float = 2) -> Constants:
    """Cuts and coefficients of least error. The range does not enter: outside the cut the value is -1 or 1."""
    cuts, coefficients, _ = fit_pieces(_erf, math.erfc, int(degree), int(pieces), odd=True, search=(1.0, 4.0))
    return as_constants(cuts, coefficients)


@approximation(
    "erf",
    "piecewise",
    comparisons=4,
    source="Blindformer: x times a minimax polynomial in x^2 inside balanced cuts",
    error=0.00011,
    domain=(-20.0, 20.0),
    fit=fit_erf,
)
def piecewise(x: Tensor, *, cuts: list[float], inner: list[float], outer: list[float] | None = None) -> Tensor:
    """erf(x) = x Q(x^2) inside the last cut, -1 below, 1 above."""
    return saturating(x, cuts, as_pieces(inner, outer))


add_polynomial("erf", saturating_fit(_erf, 0.0), error=0.43)
