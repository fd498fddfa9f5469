"""softplus, log(1 + exp(x)): x/2 and an even part."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .fourier import add_series
from .lowdegree import add_polynomial, gated_fit
from .overrides import Overrides, define_elementwise

_UNSEEN = 12.0  # log(1 + exp(x)) - x is less than 2^-17 there


def _answer(overrides: Overrides, func: Any, input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """Torch is linear above the threshold, where the difference does not show unless it is low."""
    result = overrides.elementwise("softplus", input, lambda: func(input, beta, threshold), float(beta))
    return result if threshold >= _UNSEEN else torch.where(input * beta > threshold, input, result)


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


add_series("softplus", _even_part, _tail, odd=False, search=(3.0, 12.0), error=0.000125, domain=(-40.0, 40.0))
add_polynomial("softplus", gated_fit(_even_part), error=0.08)
