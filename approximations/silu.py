"""SiLU: x sigmoid(x). Its tail dies out slowly, so two pieces are worth their four thresholds."""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .lowdegree import add_polynomial, gated_fit
from .overrides import define_elementwise
from .piecewise import as_constants, as_pieces, fit_pieces, gated
from .primitives import polynomial
from .registry import Constants, approximation

define_elementwise(
    "silu",
    F.silu,
    layers={"SiLUActivation": 1.0, "QuickGELUActivation": 1.702},  # x sigmoid(1.702 x) = silu(1.702 x) / 1.702
    presets={"faithful": "piecewise", "fast": "quad", "he": "quad"},
    search=("quad", {"name": "piecewise", "options": {"degree": 4, "pieces": 1}}),
    limit=6.0,
)


def _even_part(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * np.tanh(0.5 * x)


def _tail(x: float) -> float:
    return x / (1.0 + math.exp(x))


def fit_silu(low: float, high: float, degree: float = 5, pieces: float = 2) -> Constants:
    """Cuts and coefficients of least error. The range does not enter: the tails are exact outside the cut."""
    cuts, coefficients, _ = fit_pieces(_even_part, _tail, int(degree), int(pieces), odd=False, search=(3.0, 16.0))
    return as_constants(cuts, coefficients)


@approximation(
    "silu",
    "piecewise",
    comparisons=4,
    source="Blindformer: minimax in x^2 inside balanced cuts",
    error=0.00075,
    domain=(-40.0, 40.0),
    fit=fit_silu,
)
def piecewise(x: Tensor, *, cuts: list[float], inner: list[float], outer: list[float] | None = None) -> Tensor:
    """SiLU(x) = x/2 + even(x) inside the last cut, 0 below, x above.

    As with GELU, pieces of an odd degree meet. One piece of degree 4 has half the comparisons and errs by 0.015.
    """
    return gated(x, cuts, as_pieces(inner, outer))


@approximation(
    "silu",
    "quad",
    needs_distillation=True,
    source="Blindformer, after MPCFormer's Quad: the parabola of least error on [-4, 4]",
    error=0.155,
    domain=(-4.0, 4.0),
)
def quad(x: Tensor) -> Tensor:
    """0.1205 x^2 + 0.5 x + 0.1536."""
    return polynomial(x, [0.1536, 0.5, 0.1205])


add_polynomial("silu", gated_fit(_even_part), error=0.195)
