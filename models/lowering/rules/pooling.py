"""The largest and the mean of windows, one dimension after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand
from . import rule
from .convolutions import Sizes, pair


@rule("max_pool2d")
def max_pool2d(
    lowering: Lowering,
    x: Operand,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Node:
    b, node = lowering.builder, lowering.as_node(x)
    for axis, windows in enumerate(_windows(node, kernel, stride, padding, dilation, ceil_mode)):
        dim, size = len(node.shape) - 2 + axis, node.shape[len(node.shape) - 2 + axis]
        inside = [_inside(window, size) for window in windows]
        taken = b.index(node, dim, [i for window in inside for i in window])
        wide = (*node.shape[:dim], len(windows), len(windows[0]), *node.shape[dim + 1 :])
        node = b.maximum(b.reshape(taken, wide), dim + 1, False)
    return node


@rule("max_pool2d_with_indices")
def max_pool2d_with_indices(lowering: Lowering, x: Operand, *options: Any) -> list[Node]:
    """Without the indices, which nobody may ask for."""
    return [max_pool2d(lowering, x, *options)]


@rule("avg_pool2d")
def avg_pool2d(
    lowering: Lowering,
    x: Operand,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Node:
    """Means over windows: sums of what is inside, times one over how many places count."""
    b, node, counts = lowering.builder, lowering.as_node(x), []
    for axis, windows in enumerate(_windows(node, kernel, stride, padding, 1, ceil_mode)):
        dim, size, pad = len(node.shape) - 2 + axis, node.shape[len(node.shape) - 2 + axis], pair(padding)[axis]
        taken = b.index(node, dim, [min(max(i, 0), size - 1) for window in windows for i in window])
        wide = (*node.shape[:dim], len(windows), len(windows[0]), *node.shape[dim + 1 :])
        inside = torch.tensor([[float(0 <= i < size) for i in window] for window in windows])
        bounds = size + pad if count_include_pad else size
        least = -pad if count_include_pad else 0
        counts.append(torch.tensor([float(sum(least <= i < bounds for i in window)) for window in windows]))
        mask = b.constant(inside.reshape(*inside.shape, *[1] * (len(node.shape) - 1 - dim)))
        node = b.sum(b.mul(b.reshape(taken, wide), mask), [dim + 1], keepdim=False)
    total = counts[0][:, None] * counts[1][None, :]
    if divisor_override is not None:
        total = torch.full_like(total, float(divisor_override))
    return b.mul(node, b.constant(1.0 / total))


def _windows(
    node: Node, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes, ceil_mode: bool
) -> list[list[list[int]]]:
    """For the last two dimensions, the places of every window, some of which may lie outside."""
    steps = pair(stride if isinstance(stride, int) or stride else kernel)
    windows = []
    for size, taps, step, pad, hole in zip(
        node.shape[-2:], pair(kernel), steps, pair(padding), pair(dilation), strict=True
    ):
        room = size + 2 * pad - hole * (taps - 1) - 1
        count = room // step + 1
        if ceil_mode and room % step and count * step < size + pad:  # one more that starts inside
            count += 1
        windows.append([[start * step - pad + tap * hole for tap in range(taps)] for start in range(count)])
    return windows


def _inside(window: Sequence[int], size: int) -> list[int]:
    """A window at the border repeats a place of its own instead of one outside."""
    inside = [i for i in window if 0 <= i < size]
    return [i if 0 <= i < size else inside[0] for i in window]
