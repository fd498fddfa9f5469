"""The operations that need no other party: linear in their secret argument, or pure rearrangements.

One table, used by every protocol whose shares are integer tensors and by the float reference. Each entry takes
tensors and the instruction's attributes (protocols/operations.py lists both).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def expand_index(x: Tensor, start: int, stop: int, step: int, dim: int) -> Tensor:
    index = [slice(None)] * x.dim()
    index[dim] = slice(start, stop, step)
    return x[tuple(index)]


def unfold(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Image [B, C, H, W] -> patches [B, H', W', C * kh * kw], zero padded: a convolution is then a linear."""
    if any(padding):
        batch, channels, height, width = x.shape
        padded = x.new_zeros(batch, channels, height + 2 * padding[0], width + 2 * padding[1])
        padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
        x = padded
    patches = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])  # [B, C, H', W', kh, kw]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3)


def total(x: Tensor, dims: list[int], keepdim: bool) -> Tensor:
    return x.sum(dim=dims, keepdim=keepdim, dtype=x.dtype)


LOCAL: dict[str, Callable[..., Any]] = {
    "neg": lambda x: -x,
    "shift": lambda x, bits: x * (1 << bits),
    "sum": total,
    "reshape": lambda x, sizes: x.reshape(sizes),
    "permute": lambda x, dims: x.permute(dims),
    "expand": lambda x, sizes: x.expand(sizes),
    "slice": expand_index,
    "index": lambda x, dim, indices: x.index_select(dim, torch.tensor(indices)),
    "concat": lambda *xs, dim: torch.cat(xs, dim),
    "unfold": unfold,
}
