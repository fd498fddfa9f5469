"""Sigmoid: 1/2 + tanh(x/2)/2."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .lowdegree import add_polynomial, saturating_fit
from .overrides import define_elementwise
from .piecewise import as_pieces, saturating
from .registry import approximation
from .tanh import fit_tanh

define_elementwise(
    "sigmoid",
    torch.sigmoid,
    Tensor.sigmoid,
    F.sigmoid,
    presets={"faithful": "piecewise", "fast": "piecewise", "he": "polynomial"},
    limit=8.0,
)


@approximation(
    "sigmoid",
    "piecewise",
    comparisons=4,
    source="Blindformer: 1/2 + tanh(x/2)/2",
    error=0.0005,
    domain=(-40.0, 40.0),
    fit=fit_tanh,
)
def piecewise(x: Tensor, *, cuts: list[float], inner: list[float], outer: list[float] | None = None) -> Tensor:
    """1/2 + tanh(x/2)/2 with the fitted tanh."""
    return 0.5 + 0.5 * saturating(0.5 * x, cuts, as_pieces(inner, outer))


def _odd_part(x: np.ndarray) -> np.ndarray:
    return 0.5 * np.tanh(0.5 * x)


add_polynomial("sigmoid", saturating_fit(_odd_part, 0.5), error=0.09)
