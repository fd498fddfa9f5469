"""Sums and factors that are public: linear, so each party computes them on its share."""

from __future__ import annotations

from torch import Tensor

from .operation import LOCAL, Operation


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
