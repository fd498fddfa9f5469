"""Sums and factors that are public: linear, so each party computes them on its share."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ring import Ring, signed
from .operation import LOCAL, PRIVATE, SHARED, Operation


def _total(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return x.sum(dim=dims, keepdim=keepdim, dtype=x.dtype)


add = Operation("add", LOCAL, lambda x, y: x + y, signs=(1, 1), scales="sum")
sub = Operation("sub", LOCAL, lambda x, y: x - y, signs=(1, -1), scales="sum")
neg = Operation("neg", LOCAL, lambda x: -x, signs=(-1,))
total = Operation("sum", LOCAL, _total)
mul_public = Operation("mul_public", LOCAL, lambda x, y: x * y, shared=1, scales="public")
shift = Operation(
    "shift", LOCAL, lambda x, bits: x * (1 << bits), demand=lambda bits, attributes: bits.width - attributes["bits"]
)


# Products of secrets: with a value that one party knows, and of shared values.


_RING = Ring()

linear = Operation("linear", PRIVATE, _RING.linear, torch.matmul, shared=1, scales="linear")
mul_private = Operation("mul_private", PRIVATE, lambda x, y: x * y, shared=1, scales="private")
mul = Operation("mul", SHARED, lambda x, y: x * y, opened=True, scales="product")
matmul = Operation("matmul", SHARED, _RING.matmul, torch.matmul, scales="matrix")


# sum c_k x^k with public coefficients, ascending.


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
