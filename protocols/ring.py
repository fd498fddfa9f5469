"""Arithmetic modulo 2^bits on torch tensors, and the fixed point that lives in it.

A real v at scale s is the integer round(v * 2^s) in two's complement. Torch's integer `+ - * <<` wrap, which is
exactly arithmetic modulo 2^64 (or 2^32); the functions here are the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import BlindformerError

_LIMB = 16  # bits of a float64 limb: 16 + 16 + log2(inner dimension) stays below the 53 bits of a float64


class RangeError(BlindformerError):
    """A value does not fit the ring at its scale."""


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
        """x @ y modulo 2^bits on any device (CUDA has no integer matmul and takes the limb path)."""
        if x.device.type == "cpu":
            return _cpu_matmul(x, y)
        return self.matmul_limbs(x, y)

    def matmul_limbs(self, x: Tensor, y: Tensor) -> Tensor:
        """x @ y by exact float64 products of 16-bit limbs; inner dimension at most 2^21."""
        if x.shape[-1] > 1 << 21:
            raise RangeError(f"matrix product over {x.shape[-1]} terms: float64 limbs are exact up to 2^21")
        limbs = self.bits // _LIMB
        xs, ys = _limbs(x, limbs), _limbs(y, limbs)
        total = torch.zeros((), dtype=self.dtype, device=x.device)
        for weight in range(limbs):
            # Limb pairs of one weight are added as integers: a float sum of them could pass 2^53.
            for i in range(weight + 1):
                part = torch.matmul(xs[i], ys[weight - i]).to(torch.int64)
                total = total + (part << (_LIMB * weight)).to(self.dtype)
        return total


def _limbs(x: Tensor, count: int) -> list[Tensor]:
    return [((x >> (_LIMB * i)) & ((1 << _LIMB) - 1)).to(torch.float64) for i in range(count)]


def _cpu_matmul(x: Tensor, y: Tensor) -> Tensor:
    # Torch's integer gemm is several times slower on a narrow right side: multiply the transposes there.
    if y.dim() >= 2 and y.shape[-1] < 64 <= x.shape[-2 if x.dim() > 1 else 0]:
        return torch.matmul(y.transpose(-1, -2).contiguous(), x.transpose(-1, -2).contiguous()).transpose(-1, -2)
    return torch.matmul(x, y)


def logical_shift(x: Tensor, bits: int, width: int = 64) -> Tensor:
    """The low `width` bits of int64 x, as an unsigned number, shifted right by `bits`."""
    if bits == 0 and width == 64:
        return x
    if width == 64:
        return (x >> bits) & ((1 << (64 - bits)) - 1)
    return (x & ((1 << width) - 1)) >> bits


def top_bit(x: Tensor, width: int = 64) -> Tensor:
    """Bit `width - 1` of int64 x, as 0 or 1."""
    return (x >> (width - 1)) & 1


def sign_extend(x: Tensor, width: int) -> Tensor:
    """The low `width` bits of int64 x as a two's complement number."""
    return x if width == 64 else (x << (64 - width)) >> (64 - width)
