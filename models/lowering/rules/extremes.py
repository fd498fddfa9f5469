"""The largest and the least: of two, of a dimension, and the first so many of one."""

from __future__ import annotations

import math

from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand
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
def largest(lowering: Lowering, x: Operand, dim: int | None = None, keepdim: bool = False) -> Node | list[Node]:
    """Of all; or of a dimension, with its place."""
    if dim is None:
        return amax(lowering, x)
    return [amax(lowering, x, dim, keepdim), argmax(lowering, x, dim, keepdim)]


@rule("min")
def least(lowering: Lowering, x: Operand, dim: int | None = None, keepdim: bool = False) -> Node | list[Node]:
    if dim is None:
        return amin(lowering, x)
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
    b, right = lowering.builder, lowering.as_node(y)
    return b.add(right, b.relu(b.sub(lowering.as_node(x), right)))


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


def _negative(lowering: Lowering, x: Operand) -> Node:
    return lowering.builder.neg(lowering.as_node(x))
