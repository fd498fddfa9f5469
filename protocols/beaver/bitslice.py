"""Bit slicing: plane i holds bit i of every element, 64 elements to a word, so one gate works on 64 elements.

Legend: n elements, k bits, W = ceil(n / 64) words. Planes are int64 tensors of shape [k, W].
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..kernels import bindings
from ..kernels.library import kernel

_M1 = np.uint64(0x00AA00AA00AA00AA)
_M2 = np.uint64(0x0000CCCC0000CCCC)
_M4 = np.uint64(0x00000000F0F0F0F0)


def words(count: int) -> int:
    return (count + 63) // 64


def _transpose8(x: np.ndarray) -> np.ndarray:
    """Transpose the 8x8 bit matrix in every uint64 (Hacker's Delight, 7-3)."""
    t = (x ^ (x >> np.uint64(7))) & _M1
    x = x ^ t ^ (t << np.uint64(7))
    t = (x ^ (x >> np.uint64(14))) & _M2
    x = x ^ t ^ (t << np.uint64(14))
    t = (x ^ (x >> np.uint64(28))) & _M4
    return x ^ t ^ (t << np.uint64(28))


@kernel(bindings.to_planes)
def to_planes(values: Tensor, bits: int, drop: int = 0) -> Tensor:
    """int64 [n] -> planes [bits, W] of its low bits behind the `drop` lowest."""
    count = values.numel()
    size = (bits + 7) // 8
    raw = (values >> drop).reshape(-1).contiguous().numpy().view(np.uint8).reshape(count, 8)
    columns = np.zeros((size, words(count) * 64), dtype=np.uint8)
    columns[:, :count] = raw[:, :size].T
    blocks = _transpose8(columns.view(np.uint64))  # [size, W * 8]: byte j of a block is bit j of 8 elements
    planes = blocks.view(np.uint8).reshape(size, -1, 8).transpose(0, 2, 1).copy().reshape(size * 8, -1)
    return torch.from_numpy(planes.view(np.int64)[:bits])


@kernel(bindings.from_plane)
def from_plane(plane: Tensor, count: int) -> Tensor:
    """One plane [W] -> int64 [count] of zeros and ones."""
    raw = plane.contiguous().numpy().view(np.uint8)
    return torch.from_numpy(np.unpackbits(raw, bitorder="little", count=count).astype(np.int64))


def planes_by_run(values: Tensor, bits: int, drop: int, runs: int) -> Tensor:
    """As `to_planes`; each run's elements begin a word."""
    return torch.cat([to_planes(run, bits, drop) for run in values.reshape(runs, -1)], dim=1)


def plane_by_run(plane: Tensor, count: int, runs: int) -> Tensor:
    """As `from_plane`; each run's elements begin a word."""
    return torch.cat([from_plane(run, count // runs) for run in plane.reshape(runs, -1)])


def add_constant(planes: Tensor, number: int) -> Tensor:
    """Planes [k, W] of x -> planes of (x + number) modulo 2^k: a ripple of carries, two or three gates per plane."""
    if number == 0:
        return planes
    out = torch.empty_like(planes)
    carry: Tensor | None = None
    for i, plane in enumerate(planes):
        if number >> i & 1:
            if carry is None:
                torch.bitwise_not(plane, out=out[i])
                carry = plane
            else:
                torch.bitwise_not(plane ^ carry, out=out[i])
                carry = plane | carry
        elif carry is None:
            out[i] = plane
        else:
            torch.bitwise_xor(plane, carry, out=out[i])
            carry = plane & carry
    return out
