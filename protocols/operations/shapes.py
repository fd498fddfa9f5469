"""Rearrangements: each party moves the elements of its share."""

from __future__ import annotations

import torch
from torch import Tensor

from .operation import LOCAL, Operation


def _slice(x: Tensor, start: int, stop: int, step: int, dim: int) -> Tensor:
    index = [slice(None)] * x.dim()
    index[dim] = slice(start, stop, step)
    return x[tuple(index)]


def _index(x: Tensor, dim: int, indices: list[int]) -> Tensor:
    return x.index_select(dim, torch.tensor(indices, device=x.device))


def _unfold(x: Tensor, kernel: list[int], stride: list[int], padding: list[int]) -> Tensor:
    """Image [B, C, H, W] -> patches [B, H', W', C * kh * kw], zero padded: a convolution is then a linear."""
    if any(padding):
        batch, channels, height, width = x.shape
        padded = x.new_zeros(batch, channels, height + 2 * padding[0], width + 2 * padding[1])
        padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = x
        x = padded
    patches = x.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])  # [B, C, H', W', kh, kw]
    return patches.permute(0, 2, 3, 1, 4, 5).flatten(3)


reshape = Operation("reshape", LOCAL, lambda x, sizes: x.reshape(sizes), rearranges=True)
permute = Operation("permute", LOCAL, lambda x, dims: x.permute(dims), rearranges=True)
expand = Operation("expand", LOCAL, lambda x, sizes: x.expand(sizes), rearranges=True)
slice_ = Operation("slice", LOCAL, _slice, rearranges=True)
index = Operation("index", LOCAL, _index, rearranges=True)
concat = Operation("concat", LOCAL, lambda *xs, dim: torch.cat(xs, dim), rearranges=True)
unfold = Operation("unfold", LOCAL, _unfold, rearranges=True)
