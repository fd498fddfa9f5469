"""Rearrangements and reductions: local on shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...graph.graph import Builder, Node
from ..lowering import Lowering
from ..values import Operand, Value
from . import builds, rule

Shape = Sequence[int]
Dims = Sequence[int] | int | None
Bound = int | None


@rule(
    "contiguous", "clone", "alias", "detach", "detach_", "to", "_to_copy", "dropout", "type_as", "lift_fresh_copy",
    "lift_fresh", "item", "feature_dropout", "native_dropout",
)  # fmt: skip
def same(lowering: Lowering, x: Operand, *options: object, **named: object) -> Node:
    """Copies, and conversions between real types (a comparison's result is 0 or 1 already)."""
    return lowering.as_node(x)


@rule("full_like")
def full_like(lowering: Lowering, x: Operand, number: float, **named: object) -> Value:
    """Of a secret, its shape alone: public."""
    return Value("public", torch.full(lowering.as_node(x).shape, number))


@rule("ones_like")
def ones_like(lowering: Lowering, x: Operand, **named: object) -> Value:
    return full_like(lowering, x, 1.0)


@rule("new_full")
def new_full(lowering: Lowering, x: Operand, shape: Shape, number: float, **named: object) -> Value:
    return Value("public", torch.full(tuple(shape), number))


def _reshapes(method: Callable[..., Tensor]) -> Callable[..., Node]:
    """The rule of a tensor's method that gives its values another shape."""

    def reshape(lowering: Lowering, x: Operand, *args: object, **named: object) -> Node:
        node = lowering.as_node(x)
        shape = method(torch.empty(node.shape, device="meta"), *args, **named).shape
        return lowering.builder.reshape(node, tuple(shape))

    return reshape


rule("view", "reshape", "_unsafe_view")(_reshapes(Tensor.reshape))
rule("flatten")(_reshapes(Tensor.flatten))
rule("unflatten")(_reshapes(Tensor.unflatten))
rule("squeeze")(_reshapes(Tensor.squeeze))
unsqueeze = rule("unsqueeze")(_reshapes(Tensor.unsqueeze))
rule("permute")(builds(Builder.permute))
rule("transpose")(builds(Builder.transpose))


@rule("t", "mT")
def t(lowering: Lowering, x: Operand) -> Node:
    return lowering.builder.transpose(lowering.as_node(x), -1, -2)


@rule("numpy_T")
def reversed_dims(lowering: Lowering, x: Operand) -> Node:
    node = lowering.as_node(x)
    return lowering.builder.permute(node, list(range(len(node.shape)))[::-1])


@rule("expand", "expand_as")
def expand(lowering: Lowering, x: Operand, shape: Shape | Value | Node, **named: object) -> Node:
    sizes = lowering.as_node(shape).shape if isinstance(shape, Value | Node) else shape
    return lowering.builder.expand(lowering.as_node(x), tuple(sizes))


@rule("slice")
def slice_(
    lowering: Lowering, x: Operand, dim: int = 0, start: Bound = None, stop: Bound = None, step: int = 1
) -> Node:
    node = lowering.as_node(x)
    return lowering.builder.slice(node, dim, start or 0, node.shape[dim] if stop is None else stop, step)


@rule("copy")
def copy(lowering: Lowering, x: Operand, source: Operand, *options: object) -> Node:
    """The source, in the shape of x."""
    return lowering.builder.expand(lowering.as_node(source), lowering.as_node(x).shape)


@rule("fill")
def fill(lowering: Lowering, x: Operand, value: Operand) -> Node:
    return copy(lowering, x, value)


@rule("cat", "concat")
def concat(lowering: Lowering, xs: Sequence[Operand], dim: int = 0) -> Node:
    """As torch has it, a vector of nothing, such as an empty cache, is left out whatever the others' shape."""
    return lowering.builder.concat([node for node in map(lowering.as_node, xs) if node.shape != (0,)], dim)


@rule("stack")
def stack(lowering: Lowering, xs: Sequence[Operand], dim: int = 0) -> Node:
    return lowering.builder.concat([unsqueeze(lowering, x, dim) for x in xs], dim)


@rule("split", "split_with_sizes")
def split(lowering: Lowering, x: Operand, sizes: int | Sequence[int], dim: int = 0) -> list[Node]:
    node = lowering.as_node(x)
    total = node.shape[dim]
    parts = [min(sizes, total - i) for i in range(0, total, sizes)] if isinstance(sizes, int) else list(sizes)
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    return [lowering.builder.slice(node, dim, e - n, e) for e, n in zip(ends, parts, strict=True)]


@rule("chunk")
def chunk(lowering: Lowering, x: Operand, chunks: int, dim: int = 0) -> list[Node]:
    """At most so many parts, all but the last of one size."""
    return split(lowering, x, -(-lowering.as_node(x).shape[dim] // chunks), dim)


@rule("unbind")
def unbind(lowering: Lowering, x: Operand, dim: int = 0) -> list[Node]:
    node = lowering.as_node(x)
    return [lowering.builder.select(node, dim, i) for i in range(node.shape[dim])]


@rule("sum")
def total(lowering: Lowering, x: Operand, dims: Dims = None, keepdim: bool = False, **named: object) -> Node:
    node = lowering.as_node(x)
    return lowering.builder.sum(node, dims_of(node, dims), keepdim)


@rule("cumsum")
def cumsum(lowering: Lowering, x: Operand, dim: int, **named: object) -> Node:
    """Sums of the first so many: those of 2, 4, 8 ... neighbours, one after the other."""
    b, node, reach = lowering.builder, lowering.as_node(x), 1
    if not node.shape:
        return node
    dim %= len(node.shape)
    size = node.shape[dim]
    while reach < size:
        zeros = b.constant(torch.zeros(*node.shape[:dim], reach, *node.shape[dim + 1 :]))
        node = b.add(node, b.concat([zeros, b.slice(node, dim, 0, size - reach)], dim))
        reach *= 2
    return node


@rule("mean")
def mean(lowering: Lowering, x: Operand, dims: Dims = None, keepdim: bool = False, **named: object) -> Node:
    node = lowering.as_node(x)
    axes = dims_of(node, dims)
    count = math.prod(node.shape[d] for d in axes)
    return lowering.builder.scale(lowering.builder.sum(node, axes, keepdim), 1.0 / count)


@rule("var_mean")
def var_mean(
    lowering: Lowering,
    x: Operand,
    dims: Dims | bool = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> list[Node]:
    """`correction`: taken off the number of values; 1 unless given. Older forms say `unbiased`: for 1, or else 0."""
    if isinstance(dims, bool):
        dims, unbiased = None, dims
    b, node = lowering.builder, lowering.as_node(x)
    axes = dims_of(node, dims)
    count = math.prod(node.shape[d] for d in axes)
    middle = mean(lowering, node, axes, True)
    difference = b.sub(node, middle)
    fewer = float(unbiased) if correction is None else correction
    variance = b.scale(b.sum(b.mul(difference, difference), axes, keepdim), 1.0 / (count - fewer))
    return [variance, middle if keepdim else mean(lowering, node, axes)]


@rule("var")
def var(lowering: Lowering, x: Operand, *options: Any, **named: Any) -> Node:
    return var_mean(lowering, x, *options, **named)[0]


def dims_of(node: Node, dims: Dims) -> list[int]:
    if isinstance(dims, int):
        return [dims]
    return list(dims or range(len(node.shape)))
