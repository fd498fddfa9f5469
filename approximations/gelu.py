"""GELU: x Phi(x). Ours is fitted; the published ones keep their authors' constants.

Two published ones are missing: SecFormer and SHAFT sum sines (of pi x / 10 and of 2 pi |x| / 8), and a sine is not
one of the primitives. SHAFT's own evaluation opens x - t with t in a short range, which leaks x.
"""

from __future__ import annotations

import math

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .erf import exact_erf
from .fourier import add_series, gated
from .lowdegree import add_polynomial, gated_fit
from .overrides import define_elementwise
from .primitives import below, polynomial
from .registry import approximation

define_elementwise(
    "gelu",
    F.gelu,
    layers=dict.fromkeys(
        (
            "AccurateGELUActivation",
            "FastGELUActivation",
            "GELUActivation",
            "GELUTanh",
            "NewGELUActivation",
            "PytorchGELUTanh",
        ),
        1.0,
    ),
    presets={"faithful": "fourier", "fast": "quad", "he": "quad"},
    search=("quad", {"name": "fourier", "options": {"terms": 4}}),
    limit=6.0,
)


def _even_part(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * exact_erf(x / math.sqrt(2))


def _tail(x: float) -> float:
    return 0.5 * x * math.erfc(x / math.sqrt(2))


# 4 terms err by 0.001.
add_series("gelu", _even_part, _tail, odd=False, search=(2.0, 6.0), terms=5, error=0.000173, domain=(-30.0, 30.0))


@approximation(
    "gelu",
    "quad",
    needs_distillation=True,
    source="MPCFormer, arXiv:2211.01452, section 3.2",
    error=1.51,
    domain=(-4.0, 4.0),
)
def quad(x: Tensor) -> Tensor:
    """0.125 x^2 + 0.25 x + 0.5."""
    return polynomial(x, [0.5, 0.25, 0.125])


@approximation("gelu", "puma", comparisons=3, source="PUMA, arXiv:2307.12533", error=0.0211, domain=(-10.0, 10.0))
def puma(x: Tensor) -> Tensor:
    """0 below -4, a cubic to -1.95, degree 6 to 3, x above."""
    first, second, third = below(x, -4.0), below(x, -1.95), below(x, 3.0)
    cubic = [-0.5054031199708174, -0.42226581151983866, -0.11807612951181953, -0.011034134030615728]
    u = x * x
    sextic = [0.008526321541038084, 0.3603292692789629, -0.037688200365904236, 0.0018067462606141187]
    middle = polynomial(u, sextic) + 0.5 * x
    return (second - first) * polynomial(x, cubic) + (third - second) * middle + (1.0 - third) * x


_BOLT = [0.001620808531841547, -0.03798164612714154, 0.5410550166368381, -0.18352506127082727, 0.020848611754127593]


def _bolt(x: Tensor, cut: float) -> Tensor:
    upper, lower, negative = below(x, cut), below(x, -cut), below(x, 0.0)
    y = x * (1.0 - 2.0 * negative)  # |x|
    return x * (1.0 - 0.5 * (upper + lower)) + (upper - lower) * polynomial(y, _BOLT)


@approximation("gelu", "bolt", comparisons=3, source="BOLT, ePrint 2023/1893", error=0.0095, domain=(-10.0, 10.0))
def bolt(x: Tensor) -> Tensor:
    """x/2 + a quartic in |x| for |x| <= 2.7, max(x, 0) outside."""
    return _bolt(x, 2.7)


@approximation(
    "gelu", "bumblebee", comparisons=3, source="BumbleBee, ePrint 2023/1678", error=0.0053, domain=(-10.0, 10.0)
)
def bumblebee(x: Tensor) -> Tensor:
    """BOLT's quartic with the cut at 3."""
    return _bolt(x, 3.0)


@approximation("gelu", "nexus", comparisons=2, source="NEXUS, ePrint 2024/136", error=0.0009, domain=(-10.0, 10.0))
def nexus(x: Tensor) -> Tensor:
    """x/2 + degree 12 in x for |x| < 3.5, max(x, 0) outside.

    Evaluated in (x/4)^2 with coefficients times 16^k: the published ones are far below a fixed-point unit.
    """
    published = [
        2.25775755e-4,
        0.39688096,
        -6.37042698e-2,
        8.38841647e-3,
        -7.17830961e-4,
        3.49617829e-5,
        -7.26059653e-7,
    ]
    u = (0.25 * x) * (0.25 * x)
    return gated(x, 3.5, 0.5 * x + polynomial(u, [c * 16.0**k for k, c in enumerate(published)], domain=(3.5 / 4) ** 2))


add_polynomial("gelu", gated_fit(_even_part), error=0.262)
