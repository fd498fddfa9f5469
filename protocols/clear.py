"""The reference protocol: the same fixed point, no secrets, one process. Every other protocol is tested against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .local import LOCAL
from .operations import OPERATIONS, SOURCES
from .ring import Ring
from .rounds import Step


class Clear:
    name = "clear"
    offers = OPERATIONS
    parties = "one process"
    security = "none: the reference that other protocols are compared with"
    exact = True


PROTOCOL = Clear()


class ClearEngine:
    """Runs instructions on plain integers of the ring. `values`: encoded tensors of all sources by name."""

    def __init__(self, values: Mapping[str, Tensor], ring: Ring | None = None) -> None:
        self.values, self.ring = values, ring or Ring()

    def execute(
        self, key: str, op: str, shape: tuple[int, ...], width: int, args: list[Any], attributes: dict[str, Any]
    ) -> Step:
        return self.compute(op, args, attributes)
        yield []  # a generator without swaps

    def compute(self, op: str, args: list[Tensor], attributes: dict[str, Any]) -> Tensor:
        if op in SOURCES:
            return self.values[attributes["name"]]
        if op in LOCAL:
            return LOCAL[op](*args, **attributes)
        return getattr(self, f"_{op}")(*args, **attributes)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def _sub(self, x: Tensor, y: Tensor) -> Tensor:
        return x - y

    def _mul(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    _mul_public = _mul
    _mul_private = _mul

    def _matmul(self, x: Tensor, y: Tensor) -> Tensor:
        return self.ring.matmul(x, y)

    def _linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.ring.linear(x, weight)

    def _polynomial(self, x: Tensor, coefficients: list[int]) -> Tensor:
        result = torch.full_like(x, _signed(coefficients[-1]))
        for c in reversed(coefficients[:-1]):
            result = result * x + _signed(c)
        return result

    def _rescale(self, x: Tensor, bits: int, ring: int = 64) -> Tensor:
        return (x + (1 << (bits - 1)) >> bits) if bits else x

    def _less(self, x: Tensor, threshold: int, bits: int) -> Tensor:
        return (x < threshold).to(x.dtype)

    def _reveal(self, x: Tensor, to: str) -> Tensor:
        return x


def _signed(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
