"""Rearrangements: each party moves the elements of its share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .operation import LOCAL, Operation


def _slice(x: Tensor, start: int, stop: int, step: int, dim: int) -> Tensor:
    index = [slice(None)] * x.dim()
    index[dim] = slice(start, stop, step)
    return x[tuple(index)]


def _index(x: Tensor, dim: int, indices: list[int]) -> Tensor:
    return x.index_select(dim, torch.tensor(indices, device=x.device))


def patches(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int] | None = None,
) -> Tensor:
    """[B, C, *sizes] -> patches [B, *places, C * kernel], zero padded: a convolution is then a linear."""
    axes = len(kernel)
    if any(padding):
        x = F.pad(x, [side for pad in reversed(padding) for side in (pad, pad)])
    for axis, (size, step, hole) in enumerate(zip(kernel, stride, dilation or [1] * axes, strict=True), start=2):
        x = x.unfold(axis, hole * (size - 1) + 1, step)[..., ::hole]
    return x.permute(0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes)).flatten(1 + axes)


reshape = Operation("reshape", LOCAL, lambda x, sizes: x.reshape(sizes), rearranges=True)
permute = Operation("permute", LOCAL, lambda x, dims: x.permute(dims), rearranges=True)
expand = Operation("expand", LOCAL, lambda x, sizes: x.expand(sizes), rearranges=True)
slice_ = Operation("slice", LOCAL, _slice, rearranges=True)
index = Operation("index", LOCAL, _index, rearranges=True)
concat = Operation("concat", LOCAL, lambda *xs, dim: torch.cat(xs, dim), rearranges=True)
unfold = Operation("unfold", LOCAL, patches, rearranges=True)
