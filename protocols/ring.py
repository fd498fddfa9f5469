"""Arithmetic modulo 2^bits on torch tensors, and the fixed point that lives in it.

A real v at scale s is the integer round(v * 2^s) in two's complement. Torch's integer `+ - * <<` wrap, which is
exactly arithmetic modulo 2^64 (or 2^32); the functions here are the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BlindformerError
from .matmul import linear, matmul


class RangeError(BlindformerError):
    """A value does not fit the ring at its scale."""


_NARROW = (torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True)
class Ring:
    """Z modulo 2^bits, `bits` 32 or 64, in the integer dtype of that width."""

    bits: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (32, 64):
            raise RangeError(f"ring of {self.bits} bits: torch has 32 and 64; use one of these")

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.bits == 64 else torch.int32

    def encode(self, value: Tensor, scale: int, what: str = "value") -> Tensor:
        """Real tensor -> ring tensor at `scale` fractional bits. Refuses NaN, infinities and overflow."""
        scaled = torch.round(value.to(torch.float64) * 2.0**scale)
        limit = 2.0 ** (self.bits - 2)
        if scaled.numel() and not bool((scaled.abs() < limit).all()):
            kind = "NaN or infinite" if not bool(torch.isfinite(value).all()) else "too large for the fixed point"
            raise RangeError(f"{what}: holds entries that are {kind} (scale 2^-{scale}); check where it comes from")
        return scaled.to(self.dtype)

    def decode(self, value: Tensor, scale: int) -> Tensor:
        """Ring tensor at `scale` -> float64 tensor of the same shape."""
        return value.to(torch.float64) * 2.0**-scale

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """x @ y modulo 2^bits."""
        return matmul(x, y, self.bits)

    def linear(self, x: Tensor, weight: Tensor, bits: int = 64) -> Tensor:
        """x @ weight for a weight that is used again and again, right in the low `bits` bits of the result."""
        return linear(x, weight, min(bits, self.bits))


def narrowed(integers: Tensor) -> Tensor:
    """The same integers in the narrowest type that holds them: weights of 16 bits take 2 bytes and not 8."""
    if integers.numel() == 0:
        return integers.clone()
    low, high = int(integers.min()), int(integers.max())
    for kind in _NARROW:
        if torch.iinfo(kind).min <= low and high <= torch.iinfo(kind).max:
            return integers.to(kind)
    return integers.clone()


def signed(value: int) -> int:
    """A Python integer modulo 2^64, in two's complement."""
    half = 1 << 63
    return (value + half) % (1 << 64) - half


def logical_shift(x: Tensor, bits: int, width: int = 64) -> Tensor:
    """The low `width` bits of int64 x, as an unsigned number, shifted right by `bits`."""
    if bits == 0 and width == 64:
        return x
    if width == 64:
        return (x >> bits) & ((1 << (64 - bits)) - 1)
    return (x & ((1 << width) - 1)) >> bits


def shift_left_(x: Tensor, bits: int) -> Tensor:
    """x times 2^bits, in place; 0 <= bits < 64.

    `<<` makes torch import sympy when x has no storage, as in pricing: a second and tens of MB in every process.
    """
    return x.mul_(-(1 << 63) if bits == 63 else 1 << bits) if bits else x


def nearest(x: Tensor, bits: int) -> Tensor:
    """x / 2^bits, rounded."""
    return (x >> bits) + (x >> (bits - 1) & 1) if bits else x


def top_bit(x: Tensor, width: int = 64) -> Tensor:
    """Bit `width - 1` of int64 x, as 0 or 1."""
    return (x >> (width - 1)) & 1


def sign_extend(x: Tensor, width: int) -> Tensor:
    """The low `width` bits of int64 x as a two's complement number."""
    return x if width == 64 else (x << (64 - width)) >> (64 - width)
