"""Arithmetic modulo 2^bits on torch tensors, and the fixed point that lives in it.

A real v at scale s is the integer round(v * 2^s) in two's complement. Torch's integer `+ - * <<` wrap, which is
exactly arithmetic modulo 2^64 (or 2^32); the functions here are the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from .errors import BlindformerError
from .kernels import twins
from .kernels.library import kernel

_LIMB = 16  # bits of a float64 limb: 16 + 16 + log2(inner dimension) stays below the 53 bits of a float64
_BYTES = 1 << 16  # terms of a product of signed bytes that an int32 is sure to hold (2^14 each)


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
            return cpu_matmul(x, y)
        return self.matmul_limbs(x, y.to(x.dtype))

    def linear(self, x: Tensor, weight: Tensor, bits: int = 64) -> Tensor:
        """x @ weight for a weight that is used again and again, right in the low `bits` bits of the result.

        A matrix of few bits, column by column, is multiplied byte by byte of x (about three times as fast).
        """
        columns = byte_columns(weight) if _multiplies_bytes(x) else None
        return self.matmul(x, weight) if columns is None else self.matmul_bytes(x, columns, bits)

    def matmul_bytes(self, x: Tensor, y: ByteColumns, bits: int = 64) -> Tensor:
        """x @ (y.integers * 2^y.shifts), right in the low `bits` bits; inner dimension at most 2^16.

        x = sum_p d_p 256^p with signed bytes d_p: those of x + 0x8080..80, less 128 each. Every d_p @ y.integers is
        exact in int32, and the rest is shifts and sums modulo 2^bits.
        """
        if x.shape[-1] > _BYTES:
            raise RangeError(f"matrix product over {x.shape[-1]} terms: sums of bytes are exact up to {_BYTES}")
        rows, inner = x.numel() // x.shape[-1], x.shape[-1]
        count = min(self.bits, bits, 64) + 7 >> 3
        raised = x.reshape(rows, inner) + signed(sum(128 << (8 * p) for p in range(self.bits // 8)), self.bits)
        digits = torch.empty(count, rows, inner, dtype=torch.int8)
        for p in range(count):
            digits[p].copy_(raised >> (8 * p) if p else raised)
        stacked = digits.bitwise_xor_(-128).view(count * rows, inner)
        parts = torch.ops.aten._int_mm(stacked, y.integers).view(count, rows, -1)
        total = parts[0].to(self.dtype)
        for p in range(1, count):
            total.add_(parts[p].to(self.dtype), alpha=signed(1 << (8 * p), self.bits))
        if y.shifts is not None:
            total <<= y.shifts
        return total.view(*x.shape[:-1], total.shape[-1])

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


@dataclass(frozen=True)
class ByteColumns:
    """A matrix of signed bytes [K, N] times a power of two by column, [N] (None: 1)."""

    integers: Tensor
    shifts: Tensor | None


_examined: WeakIdKeyDictionary = WeakIdKeyDictionary()  # weight -> its ByteColumns or None: found once a session


def byte_columns(weight: Tensor) -> ByteColumns | None:
    """The matrix as bytes, if every column is some bytes times a power of two. Each tensor is examined once."""
    if weight not in _examined:
        _examined[weight] = _as_bytes(weight)
    return _examined[weight]


def _as_bytes(weight: Tensor) -> ByteColumns | None:
    if weight.dim() != 2 or not weight.numel():
        return None
    low, high = weight.amin(0), weight.amax(0)
    shifts = torch.zeros_like(low)
    for _ in range(64):
        over = (low >> shifts < -128) | (high >> shifts > 127)
        if not bool(over.any()):
            break
        shifts += over
    if not torch.equal(weight >> shifts << shifts, weight):
        return None
    return ByteColumns((weight >> shifts).to(torch.int8), shifts if bool(shifts.any()) else None)


def _multiplies_bytes(x: Tensor) -> bool:
    """Whether this machine has fast and exact products of signed bytes. Without VNNI, sums of two saturate."""
    return x.device.type == "cpu" and 0 < x.shape[-1] <= _BYTES and x.numel() > 0 and _vnni()


@cache
def _vnni() -> bool:
    supported = getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(supported and supported() and hasattr(torch, "_int_mm"))


def signed(value: int, bits: int = 64) -> int:
    """A Python integer modulo 2^bits, in two's complement."""
    half = 1 << (bits - 1)
    return (value + half) % (1 << bits) - half


def _limbs(x: Tensor, count: int) -> list[Tensor]:
    return [((x >> (_LIMB * i)) & ((1 << _LIMB) - 1)).to(torch.float64) for i in range(count)]


@kernel(twins.matmul)
def cpu_matmul(x: Tensor, y: Tensor) -> Tensor:
    """x @ y modulo 2^64, y of integers of any width."""
    y = y.to(x.dtype)
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
