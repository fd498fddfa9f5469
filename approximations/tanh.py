"""tanh: odd, and -1 or 1 far from zero."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .fourier import add_series
from .lowdegree import add_polynomial, saturating_fit
from .overrides import define_elementwise
from .primitives import below, polynomial
from .registry import approximation

define_elementwise(
    "tanh",
    torch.tanh,
    Tensor.tanh,
    F.tanh,
    presets={"faithful": "fourier", "fast": "fourier", "he": "polynomial"},
    limit=6.0,
)


def _tail(x: float) -> float:
    return 1.0 - math.tanh(x)


fit_tanh = add_series("tanh", np.tanh, _tail, odd=True, search=(1.5, 6.0), terms=7, error=0.00071, domain=(-30.0, 30.0))


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
