"""Sigmoid: 1/2 + tanh(x/2)/2."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .fourier import odd, saturating
from .lowdegree import add_polynomial, saturating_fit
from .overrides import define_elementwise
from .registry import approximation
from .tanh import fit_tanh

define_elementwise(
    "sigmoid",
    torch.sigmoid,
    Tensor.sigmoid,
    F.sigmoid,
    presets={"faithful": "fourier", "fast": "fourier", "he": "polynomial"},
    limit=8.0,
)


@approximation(
    "sigmoid",
    "fourier",
    comparisons=2,
    source="Blindformer: 1/2 + tanh(x/2)/2",
    error=0.00036,
    domain=(-40.0, 40.0),
    fit=fit_tanh,
)
def series(x: Tensor, *, cut: float, period: float, terms: list[float]) -> Tensor:
    """1/2 + tanh(x/2)/2 with the fitted tanh."""
    half = 0.5 * x
    return 0.5 + 0.5 * saturating(half, cut, odd(half, cut, period, terms))


def _odd_part(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x)


add_polynomial("sigmoid", saturating_fit(_odd_part, 0.5), error=0.09)
