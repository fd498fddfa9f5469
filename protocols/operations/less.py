"""less: 1 where x < threshold, which is public: |x - threshold| < 2^(bits-1).

sides: x [..., n] -> [..., 2 n]: of all x, 1 where low <= x < high; then of all x, 1 where x >= high.

With `drop`, the lowest bits of both are not read: the reference compares what is left. Parties know what is left of a
masked x up to a carry, so nearer than 2^drop to the threshold either answer may come.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ring import sign_extend
from .operation import SHARED, Attributes, Bits, Operation


def _less(x: Tensor, threshold: int, bits: int, drop: int = 0) -> Tensor:
    return (sign_extend((x >> drop) - (threshold >> drop), bits - drop) < 0).to(x.dtype)


def _sides(x: Tensor, low: int, high: int, bits: int, drop: int = 0) -> Tensor:
    if not x.dim() or not x.numel():
        raise ValueError("sides: of no numbers, or of one without a row")
    below_low, below_high = (_less(x, threshold, bits, drop) for threshold in (low, high))
    return torch.cat([below_high - below_low, 1 - below_high], -1)


def _sides_of_reals(x: Tensor, low: float, high: float, tolerance: float = 0.0) -> Tensor:
    return torch.cat([(x >= low) & (x < high), x >= high], -1).to(x.dtype)


def _demand(bits: Bits, attributes: Attributes) -> int:
    bits.compares = attributes["bits"]
    return int(attributes["bits"])


def _problem(attributes: Attributes) -> str:
    drop = attributes.get("drop", 0)
    if not all(type(attributes.get(name, 0)) is int for name in ("threshold", "low", "high")):
        return "a comparison with a threshold that is no whole number"
    if attributes.get("low", 0) > attributes.get("high", 0):
        return "a comparison with sides whose low end is above their high one"
    fits = type(drop) is int and 0 <= drop < attributes["bits"] - 1
    return "" if fits else "a comparison that drops a number of bits that it does not have"


def _limit(width: int, attributes: Attributes) -> float:
    thresholds = (abs(attributes.get(name, 0)) for name in ("threshold", "low", "high"))
    return 2.0 ** (attributes["bits"] - 1) - max(thresholds)


_FACTS: dict[str, Any] = {"opened": True, "scales": "less", "check": _problem, "demand": _demand, "limit": _limit}

less = Operation("less", SHARED, _less, lambda x, threshold, tolerance=0.0: (x < threshold).to(x.dtype), **_FACTS)
sides = Operation("sides", SHARED, _sides, _sides_of_reals, **_FACTS)
