"""Convolutions, as products of patches with the kernel; and the batch norms that go into them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...graph.graph import Node, derived
from ..lowering import Lowering
from ..values import Operand, Value
from . import rule
from .indexing import constant_pad_nd
from .products import product

Sizes = Sequence[int] | int


@rule("conv2d")
def conv2d(
    lowering: Lowering,
    x: Operand,
    weight: Value,
    bias: Operand | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Node:
    """[B, C, H, W] -> [B, O, H', W']. A kernel with holes is a larger one with zeros in them."""
    if weight.owner not in ("server", "public"):
        raise lowering.fail("a convolution with a secret kernel has no rule; make the kernel a parameter")
    holes = pair(dilation)
    kernel = [(n - 1) * d + 1 for n, d in zip(weight.tensor.shape[2:], holes, strict=True)]
    if isinstance(padding, str):
        total = [n - 1 if padding == "same" else 0 for n in kernel]
        if any(n % 2 for n in total):  # more at the end than at the start
            x = constant_pad_nd(lowering, x, [0, total[1] % 2, 0, total[0] % 2])
        padding = [n // 2 for n in total]
    node = lowering.as_node(x)
    patches = lowering.builder.unfold(node, kernel, pair(stride), pair(padding))
    if isinstance(x, Value) and x.owner == "client":
        patches = _cut_by_client(lowering, x, patches, kernel, pair(stride), pair(padding))
    flat = weight.with_tensor(lambda w: _with_holes(w, holes).flatten(1))
    out = _grouped(lowering, patches, flat, groups, math.prod(kernel))
    if bias is not None:
        out = lowering.builder.add(out, lowering.as_node(bias))
    return lowering.builder.permute(out, [0, 3, 1, 2])


@rule("conv1d")
def conv1d(
    lowering: Lowering,
    x: Operand,
    weight: Value,
    bias: Operand | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Node:
    """[B, C, L] -> [B, O, L']: an image of height 1."""
    high = _high(lowering, x)
    kernel = weight.with_tensor(lambda w: w.unsqueeze(2))
    sizes = [[one, pair(v)[1]] for one, v in ((1, stride), (1, dilation))]
    around: Sizes | str = padding if isinstance(padding, str) else [0, pair(padding)[1]]
    out = conv2d(lowering, high, kernel, bias, sizes[0], around, sizes[1], groups)
    return lowering.builder.reshape(out, (out.shape[0], out.shape[1], out.shape[3]))


@rule("convolution")
def convolution(
    lowering: Lowering,
    x: Operand,
    weight: Value,
    bias: Operand | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Node | Value:
    dims = weight.tensor.dim() - 2
    if transposed:
        return lowering.apart(_transposed, x, weight, bias, stride, padding, dilation, output_padding, groups)
    if dims == 3:
        return lowering.apart(_over_depth, x, weight, bias, stride, padding, dilation, groups)
    return (conv1d, conv2d)[dims - 1](lowering, x, weight, bias, stride, padding, dilation, groups)


def _over_depth(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """[B, C, D, H, W] -> [B, O, D', H', W']: of images, whose channels are those of all images under the kernel."""
    depth = (weight.shape[2] - 1) * dilation[0] + 1
    x = F.pad(x, (0, 0, 0, 0, padding[0], padding[0]))
    windows = x.unfold(2, depth, stride[0])[..., :: dilation[0]].permute(0, 2, 1, 5, 3, 4)
    images, kernel = windows.flatten(2, 3).flatten(0, 1), weight.flatten(1, 2)
    out = F.conv2d(images, kernel, bias, tuple(stride[1:]), tuple(padding[1:]), tuple(dilation[1:]), groups)
    return out.unflatten(0, (windows.shape[0], windows.shape[1])).transpose(1, 2)


def _transposed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
) -> Tensor:
    """[B, C, ...] -> [B, O, ...]: a product at each place, where outputs do not overlap; else a convolution, with zeros
    between the places and the kernel turned around."""
    kernel, dims = list(weight.shape[2:]), weight.dim() - 2
    if list(stride) == kernel and groups == 1 and not any([*padding, *output_padding]) and set(dilation) == {1}:
        each = x.movedim(1, -1) @ weight.flatten(1)  # [B, ..., O kernel]
        each = each.unflatten(-1, (weight.shape[1], *kernel)).movedim(dims + 1, 1)  # [B, O, ..., kernel]
        order = [d for place in range(2, dims + 2) for d in (place, place + dims)]
        sizes = [n * k for n, k in zip(x.shape[2:], kernel, strict=True)]
        out = each.permute(0, 1, *order).reshape(*each.shape[:2], *sizes)
        return out if bias is None else out + bias.reshape(-1, *[1] * dims)
    around: list[int] = []  # from the last dimension on
    for place in range(dims):
        step, reach = stride[place], dilation[place] * (kernel[place] - 1) - padding[place]
        apart = F.pad(x.unsqueeze(place + 3), [0, 0] * (dims - 1 - place) + [0, step - 1])
        x = apart.flatten(place + 2, place + 3)
        around = [reach, reach + output_padding[place] - (step - 1), *around]
    turned = weight.flip(list(range(2, dims + 2))).unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    return convolve(F.pad(x, around), turned, bias, dilation=tuple(dilation), groups=groups)


@rule("batch_norm")
def batch_norm(
    lowering: Lowering,
    x: Operand,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float,
    eps: float,
    *rest: object,
) -> Node:
    """A factor and a summand for each channel: part of the convolution before it, if there is one."""
    if mean is None or variance is None or training:
        raise lowering.fail("a batch norm without running statistics has no rule; keep track_running_stats=True")
    factor = lowering.apply("aten.rsqrt.default", lowering.apply("aten.add.Tensor", variance, eps))
    factor = factor if weight is None else lowering.apply("aten.mul.Tensor", factor, weight)
    shift = lowering.apply("aten.neg.default", lowering.apply("aten.mul.Tensor", mean, factor))
    shift = shift if bias is None else lowering.apply("aten.add.Tensor", shift, bias)
    b, node = lowering.builder, lowering.as_node(x)
    folded = _scaled_convolution(lowering, node, factor, shift)
    if folded is not None:
        return folded
    shape = [-1, *[1] * (len(node.shape) - 2)]
    wide = [lowering.as_node(lowering.apply("aten.reshape.default", v, shape)) for v in (factor, shift)]
    return b.add(b.mul(node, wide[0]), wide[1])


@rule("_native_batch_norm_legit_no_training")
def native_batch_norm(
    lowering: Lowering,
    x: Operand,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    eps: float,
) -> list[Node]:
    return [batch_norm(lowering, x, weight, bias, mean, variance, False, momentum, eps)]


def _scaled_convolution(lowering: Lowering, node: Node, factor: Value, shift: Value) -> Node | None:
    """factor (patches W + b) + shift, as one product of the same patches."""
    b = lowering.builder
    if node.op != "permute" or node.attributes["dims"] != [0, 3, 1, 2]:
        return None
    inner, bias = node.args[0], None
    if inner.op == "add" and inner.args[1].op == "weight":
        inner, bias = inner.args
    if inner.op != "linear" or inner.args[1].value is None:
        return None
    patches, kernel = inner.args
    times = lowering.as_node(factor)
    out = b.matmul(patches, _multiplied(kernel, times))
    if bias is not None:
        out = b.add(out, _multiplied(bias, times))
    return b.permute(b.add(out, lowering.as_node(shift)), [0, 3, 1, 2])


def _multiplied(weight: Node, factor: Node) -> Node:
    assert weight.value is not None
    assert factor.value is not None
    return derived(weight.value.double() * factor.value.double(), f"{weight.name}.normed", weight, factor)


def _grouped(lowering: Lowering, patches: Node, kernel: Value, groups: int, taps: int) -> Node:
    """Patches [B, H', W', C taps] times a kernel [O, C / groups taps], each group of channels by its own rows."""
    if groups == 1:
        return product(lowering, patches, lowering.as_node(kernel.with_tensor(lambda w: w.t())))
    b, (batch, height, width, columns) = lowering.builder, patches.shape
    outputs = kernel.tensor.shape[0]
    split = b.reshape(patches, (batch * height * width, groups, columns // groups))
    each = kernel.with_tensor(lambda w: w.reshape(groups, outputs // groups, columns // groups).transpose(1, 2))
    out = product(lowering, b.permute(split, [1, 0, 2]), lowering.as_node(each))  # [groups, B H' W', O / groups]
    return b.reshape(b.permute(out, [1, 0, 2]), (batch, height, width, outputs))


def _cut_by_client(
    lowering: Lowering, x: Value, patches: Node, kernel: list[int], stride: list[int], padding: list[int]
) -> Node:
    """Patches of the client's own image, which it cuts in the clear."""
    name = f"{x.ref}.patches.{len(lowering.steps)}"
    # [B, C kh kw, H' W']
    columns = lowering.step(f"{name}.columns", "aten.im2col.default", x, kernel, [1, 1], padding, stride)
    rows = lowering.step(f"{name}.rows", "aten.transpose.int", columns, 1, 2)
    return lowering.as_node(lowering.step(name, "aten.reshape.default", rows, list(patches.shape)))


def _with_holes(weight: Tensor, holes: list[int]) -> Tensor:
    if holes == [1, 1]:
        return weight
    rows, columns = ((n - 1) * d + 1 for n, d in zip(weight.shape[2:], holes, strict=True))
    wide = weight.new_zeros(*weight.shape[:2], rows, columns)
    wide[:, :, :: holes[0], :: holes[1]] = weight
    return wide


def _high(lowering: Lowering, x: Operand) -> Operand:
    """[B, C, L] -> [B, C, 1, L], by the client if it is its own."""
    if isinstance(x, Value) and x.owner == "client":
        return lowering.apply("aten.unsqueeze.default", x, 2)
    node = lowering.as_node(x)
    return lowering.builder.reshape(node, (*node.shape[:2], 1, node.shape[2]))


def pair(sizes: Sizes) -> list[int]:
    both = [sizes] if isinstance(sizes, int) else list(sizes)
    return both * 2 if len(both) == 1 else both


# The largest and the mean of windows, one dimension after the other.


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


@rule("max_pool1d")
def max_pool1d(
    lowering: Lowering,
    x: Operand,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Node:
    """[B, C, L], or [C, L], as an image of one row."""
    b, node = lowering.builder, lowering.as_node(x)
    high = b.reshape(node, (*node.shape[:-1], 1, node.shape[-1]))
    taps, steps = pair(kernel)[0], pair(stride or kernel)[0]
    sizes = [1, taps], [1, steps], [0, pair(padding)[0]], [1, pair(dilation)[0]]
    pooled = max_pool2d(lowering, high, *sizes, ceil_mode)
    return b.reshape(pooled, (*node.shape[:-1], pooled.shape[-1]))


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
