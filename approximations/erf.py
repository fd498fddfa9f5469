"""erf: odd, and -1 or 1 far from zero."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .fourier import add_series
from .lowdegree import add_polynomial, saturating_fit
from .overrides import define_elementwise

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


add_series("erf", exact_erf, math.erfc, odd=True, search=(1.0, 4.0), terms=7, error=0.000026, domain=(-20.0, 20.0))
add_polynomial("erf", saturating_fit(exact_erf, 0.0), error=0.43)
