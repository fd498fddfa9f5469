"""1 where x < threshold, which is public: |x - threshold| < 2^(bits-1)."""

from __future__ import annotations

from torch import Tensor

from ..ring import sign_extend
from .operation import SHARED, Attributes, Bits, Operation, whole_bytes


def _less(x: Tensor, threshold: int, bits: int) -> Tensor:
    return (sign_extend(x - threshold, bits) < 0).to(x.dtype)


def _demand(bits: Bits, attributes: Attributes) -> int:
    bits.compares = attributes["bits"]
    return whole_bytes(attributes["bits"])


less = Operation(
    "less",
    SHARED,
    _less,
    lambda x, threshold: (x < threshold).to(x.dtype),
    opened=True,
    scales="less",
    demand=_demand,
    limit=lambda width, attributes: 2.0 ** (attributes["bits"] - 1) - abs(attributes["threshold"]),
)
