"""SiLU: x sigmoid(x)."""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .fourier import add_series
from .lowdegree import add_polynomial, gated_fit
from .overrides import define_elementwise
from .primitives import polynomial
from .registry import approximation

define_elementwise(
    "silu",
    F.silu,
    layers={"SiLUActivation": 1.0, "QuickGELUActivation": 1.702},  # x sigmoid(1.702 x) = silu(1.702 x) / 1.702
    presets={"faithful": "fourier", "fast": "quad", "he": "quad"},
    search=("quad", {"name": "fourier", "options": {"terms": 8}}),
    limit=6.0,
)


def _even_part(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * np.tanh(0.5 * x)


def _tail(x: float) -> float:
    return x / (1.0 + math.exp(x))


# Its tail dies out slowly, so the cut is far out.
add_series("silu", _even_part, _tail, odd=False, search=(3.0, 16.0), terms=10, error=0.000321, domain=(-40.0, 40.0))


@approximation(
    "silu",
    "quad",
    needs_distillation=True,
    source="Blindformer, after MPCFormer's Quad: the best parabola on [-4, 4]",
    error=0.155,
    domain=(-4.0, 4.0),
)
def quad(x: Tensor) -> Tensor:
    """0.1205 x^2 + 0.5 x + 0.1536."""
    return polynomial(x, [0.1536, 0.5, 0.1205])


add_polynomial("silu", gated_fit(_even_part), error=0.195)
