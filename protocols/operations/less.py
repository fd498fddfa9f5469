"""1 where x < threshold, which is public: |x - threshold| < 2^(bits-1).

With `drop`, the lowest bits of both are not read: the reference compares what is left. Parties know what is left of a
masked x up to a carry, so nearer than 2^drop to the threshold either answer may come.
"""

from __future__ import annotations

from torch import Tensor

from ..ring import sign_extend
from .operation import SHARED, Attributes, Bits, Operation


def _less(x: Tensor, threshold: int, bits: int, drop: int = 0) -> Tensor:
    return (sign_extend((x >> drop) - (threshold >> drop), bits - drop) < 0).to(x.dtype)


def _demand(bits: Bits, attributes: Attributes) -> int:
    bits.compares = attributes["bits"]
    return int(attributes["bits"])


def _problem(attributes: Attributes) -> str:
    drop = attributes.get("drop", 0)
    fits = type(drop) is int and 0 <= drop < attributes["bits"]
    return "" if fits else "a comparison that drops a number of bits that it does not have"


less = Operation(
    "less",
    SHARED,
    _less,
    lambda x, threshold, tolerance=0.0: (x < threshold).to(x.dtype),
    opened=True,
    scales="less",
    check=_problem,
    demand=_demand,
    limit=lambda width, attributes: 2.0 ** (attributes["bits"] - 1) - abs(attributes["threshold"]),
)
