"""sum c_k x^k with public coefficients, ascending."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ring import signed
from .operation import SHARED, Operation


def _horner(x: Tensor, coefficients: list[int] | list[float]) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result


polynomial = Operation(
    "polynomial",
    SHARED,
    lambda x, coefficients: _horner(x, [signed(c) for c in coefficients]),
    lambda x, coefficients, domain=0.0: _horner(x, coefficients),
    opened=True,
    scales="polynomial",
)
