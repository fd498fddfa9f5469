"""The largest and the least: of two, of a dimension, and the first so many of one."""

from __future__ import annotations

import math

import torch

from ...graph.graph import Node
from ..lowering import Lowering
from ..masks import INFINITE
from ..values import Operand, Value, known, owner_of
from . import rule
from .elementwise import clamp
from .shapes import Dims, dims_of


@rule("amax")
def amax(lowering: Lowering, x: Operand, dims: Dims = (), keepdim: bool = False) -> Node:
    node = lowering.as_node(x)
    for dim in sorted(dims_of(node, dims), reverse=True):
        node = lowering.builder.maximum(node, dim, keepdim)
    return node


@rule("amin")
def amin(lowering: Lowering, x: Operand, dims: Dims = (), keepdim: bool = False) -> Node:
    return _negative(lowering, amax(lowering, _negative(lowering, x), dims, keepdim))


@rule("max")
def largest(
    lowering: Lowering, x: Operand, dim: int | Value | Node | None = None, keepdim: bool = False
) -> Node | list[Node]:
    """Of all; of a dimension, with its place; or of two, element by element."""
    if dim is None:
        return amax(lowering, x)
    if isinstance(dim, Value | Node):
        return maximum(lowering, x, dim)
    return [amax(lowering, x, dim, keepdim), argmax(lowering, x, dim, keepdim)]


@rule("min")
def least(
    lowering: Lowering, x: Operand, dim: int | Value | Node | None = None, keepdim: bool = False
) -> Node | list[Node]:
    if dim is None:
        return amin(lowering, x)
    if isinstance(dim, Value | Node):
        return minimum(lowering, x, dim)
    return [amin(lowering, x, dim, keepdim), argmin(lowering, x, dim, keepdim)]


@rule("argmax")
def argmax(lowering: Lowering, x: Operand, dim: int | None = None, keepdim: bool = False) -> Node:
    node, b = lowering.as_node(x), lowering.builder
    if dim is None:
        return b.argmax(b.reshape(node, (math.prod(node.shape),)), 0, False)
    return b.argmax(node, dim, keepdim)


@rule("argmin")
def argmin(lowering: Lowering, x: Operand, dim: int | None = None, keepdim: bool = False) -> Node:
    return argmax(lowering, _negative(lowering, x), dim, keepdim)


@rule("maximum")
def maximum(lowering: Lowering, x: Operand, y: Operand) -> Node:
    b = lowering.builder
    if _is_least(x):
        x, y = y, x
    left, right = lowering.as_node(x), lowering.as_node(y)
    if _is_least(y):
        return b.expand(left, tuple(torch.broadcast_shapes(left.shape, right.shape)))
    return b.add(right, b.relu(b.sub(left, right)))


@rule("minimum")
def minimum(lowering: Lowering, x: Operand, y: Operand) -> Node:
    b, right = lowering.builder, lowering.as_node(y)
    return b.sub(right, b.relu(b.sub(right, lowering.as_node(x))))


@rule("clamp_min")
def clamp_min(lowering: Lowering, x: Operand, low: float) -> Node:
    return clamp(lowering, x, low)


@rule("clamp_max")
def clamp_max(lowering: Lowering, x: Operand, high: float) -> Node:
    return clamp(lowering, x, None, high)


def _is_least(operand: Operand) -> bool:
    """Whether it is a number that no value is below, with which a search for the largest starts."""
    if isinstance(operand, Node) or owner_of(operand) not in ("public", "server"):
        return False
    return bool((torch.as_tensor(known(operand)) <= INFINITE).all())


def _negative(lowering: Lowering, x: Operand) -> Node:
    return lowering.builder.neg(lowering.as_node(x))
