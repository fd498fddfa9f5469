"""Bit slicing: plane i holds bit i of every element, 64 elements to a word, so one gate works on 64 elements.

Legend: n elements, k bits, W = ceil(n / 64) words. Planes are int64 tensors of shape [k, W].
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..kernels import bindings
from ..kernels.library import kernel

_BYTE = 8
_SWAPS = ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0))


def words(count: int) -> int:
    return (count + 63) // 64


def _transpose8(x: Tensor) -> Tensor:
    """Transpose the 8x8 bit matrix in every element (Hacker's Delight, 7-3)."""
    for shift, mask in _SWAPS:
        swapped = (x >> shift).bitwise_xor_(x).bitwise_and_(mask)  # no mask reads what a sign has shifted in
        x = x.bitwise_xor(swapped).bitwise_xor_(swapped.bitwise_left_shift_(shift))
    return x


@kernel(bindings.to_planes)
def to_planes(values: Tensor, bits: int, drop: int = 0) -> Tensor:
    """int64 [n] -> planes [bits, W] of its low bits behind the `drop` lowest."""
    count, size = values.numel(), -(-bits // _BYTE)
    raw = (values >> drop).reshape(-1, 1).contiguous().view(torch.uint8)[:, :size]
    columns = raw.new_zeros(size, words(count) * 64)
    columns[:, :count] = raw.T
    blocks = _transpose8(columns.view(torch.int64))  # [size, W * 8]: byte j of a block is bit j of 8 elements
    planes = blocks.view(torch.uint8).view(size, -1, _BYTE).transpose(1, 2).reshape(size * _BYTE, -1).contiguous()
    return planes.view(torch.int64)[:bits]


@kernel(bindings.from_plane)
def from_plane(plane: Tensor, count: int) -> Tensor:
    """One plane [W] -> int64 [count] of zeros and ones."""
    places = torch.arange(64, device=plane.device)
    return (plane[:, None] >> places & 1).view(-1)[:count]


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
