"""The reference protocol: the same fixed point, no secrets, one process. Every other protocol is tested against it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .local import LOCAL
from .operations import OPERATIONS, SOURCES
from .ring import Ring, sign_extend
from .rounds import Step


class Clear:
    name = "clear"
    offers = OPERATIONS
    parties = "one process"
    security = "none: the reference that other protocols are compared with"
    exact = True


PROTOCOL = Clear()


class ClearEngine:
    """Runs instructions on plain integers of the ring. `values`: encoded tensors of all sources by name.

    It computes what parties compute, wraps included: a rescale sees its argument modulo its ring, a comparison modulo
    its bits, and an answer is read modulo its width. Parties leave two things to chance: the carry of a rescale, which
    rounds to nearest here, and a rescale's argument that is out of range, which is left to chance here, too.
    """

    def __init__(self, values: Mapping[str, Tensor], ring: Ring | None = None) -> None:
        self.values, self.ring = values, ring or Ring()
        self._chance = torch.Generator().manual_seed(0)  # hides nothing, so it is no mask

    def execute(
        self, key: str, op: str, shape: tuple[int, ...], width: int, args: list[Any], attributes: dict[str, Any]
    ) -> Step:
        return self.compute(op, args, attributes, width)
        yield []  # a generator without swaps

    def compute(self, op: str, args: list[Tensor], attributes: dict[str, Any], width: int = 64) -> Tensor:
        """`width`: the low bits that the instruction promises; those above are whatever comes."""
        if op in SOURCES:
            return self.values[attributes["name"]]
        if op in LOCAL:
            return LOCAL[op](*args, **attributes)
        if op == "reveal":
            return sign_extend(_nearest(args[0], attributes.get("bits", 0)), width)
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
        """x / 2^bits, of x modulo 2^ring.

        Among parties, an x out of range (|x| >= 2^(ring-2)) loses 2^ring or not, by the mask that it meets
        (protocols/beaver/rescale.py): with y = x + 2^(ring-2) modulo 2^ring, which is at least 2^(ring-1) then, it does
        so with a probability of y / 2^(ring-1) - 1.
        """
        if not bits:
            return x
        x = sign_extend(x, ring)
        result = _nearest(x, bits)
        edge = 1 << (ring - 2)
        out = (x >= edge) | (x < -edge)
        if not x.is_meta and bool(out.any()):
            past, top = (x - edge) & (2 * edge - 1), 2 * edge - 1  # y - 2^(ring-1), below 2^(ring-1)
            mask = torch.randint(top, x.shape, generator=self._chance).to(x.device)
            lost = mask > top - past
            wrap = _signed(1 << (ring - bits))
            result += wrap * (out * ((x < 0).long() - lost.long()))
        return result

    def _less(self, x: Tensor, threshold: int, bits: int) -> Tensor:
        return (sign_extend(x - threshold, bits) < 0).to(x.dtype)


def _nearest(x: Tensor, bits: int) -> Tensor:
    """x / 2^bits, rounded."""
    return (x >> bits) + (x >> (bits - 1) & 1) if bits else x


def _signed(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)
