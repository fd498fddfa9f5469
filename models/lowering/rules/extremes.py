"""The largest and the least: of two, of a dimension, and the first so many of one."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import torch

from ...graph.graph import Node, within
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
    if dim is None or not node.shape:
        place = b.argmax(b.reshape(node, (math.prod(node.shape),)), 0, False)
        return b.reshape(place, (1,) * len(node.shape)) if keepdim else place
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
    return within(b.add(right, b.relu(b.sub(left, right))), [left, right])


@rule("minimum")
def minimum(lowering: Lowering, x: Operand, y: Operand) -> Node:
    b, left, right = lowering.builder, lowering.as_node(x), lowering.as_node(y)
    return within(b.sub(right, b.relu(b.sub(right, left))), [left, right])


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


# The order of secrets, from a comparison of every pair: two rounds of comparisons, N (N - 1) / 2 in the first.

MOST = 128  # elements of a row


@rule("topk")
def topk(
    lowering: Lowering, x: Operand, k: int, dim: int = -1, largest: bool = True, in_order: bool = True
) -> list[Node]:
    """The first k, the best first, and their places. Of equal ones the earlier is first."""
    b, node = lowering.builder, lowering.as_node(x)
    if not node.shape:
        return [b.reshape(part, ()) for part in topk(lowering, b.reshape(node, (1,)), k)]
    dim %= len(node.shape)
    count = node.shape[dim]
    if count > MOST:
        raise lowering.fail(f"the order of {count} secrets has no rule, of {MOST} it has; use amax, or fewer")
    last = b.transpose(node, dim, -1)
    ranks = _ranks(lowering, last if largest else b.neg(last))
    bits = steps(lowering, ranks, k)  # [..., N, k]
    values = b.sum(b.mul(b.reshape(last, (*last.shape, 1)), bits), [-2], keepdim=False)
    numbers = b.constant(torch.arange(float(count)).reshape(count, 1))
    places = within(b.sum(b.mul(bits, numbers), [-2], keepdim=False), [numbers])
    return [b.transpose(result, dim, -1) for result in (values, places)]


@rule("sort")
def sort(lowering: Lowering, x: Operand, dim: int = -1, descending: bool = False) -> list[Node]:
    count = lowering.as_node(x).shape[dim] if lowering.as_node(x).shape else 1
    return topk(lowering, x, count, dim, descending)


@rule("argsort")
def argsort(lowering: Lowering, x: Operand, dim: int = -1, descending: bool = False) -> Node:
    return sort(lowering, x, dim, descending)[1]


def steps(lowering: Lowering, numbers: Node, count: int) -> Node:
    """[...] of whole numbers from 0 on -> [..., count]: 1 at the place of the number, if it is below the count."""
    b = lowering.builder
    below = [b.constant(torch.zeros(numbers.shape)), *(b.less(numbers, place + 0.5) for place in range(count))]
    bits = [b.sub(after, before) for before, after in pairwise(below)]
    return b.concat([b.reshape(bit, (*numbers.shape, 1)) for bit in bits], len(numbers.shape))


def _ranks(lowering: Lowering, x: Node) -> Node:
    """[..., N] -> by how many others each is beaten."""
    b, n = lowering.builder, x.shape[-1]
    if n == 1:
        return b.constant(torch.zeros(x.shape))
    pairs, dim = list(combinations(range(n), 2)), len(x.shape) - 1
    difference = b.sub(b.index(x, dim, [i for i, _ in pairs]), b.index(x, dim, [j for _, j in pairs]))
    difference.row = -1
    later = b.less(difference, 0.0)  # 1 where the later of two is larger
    beaten = b.concat([later, b.complement(later)], dim)
    number = {pair: place for place, pair in enumerate(pairs)}
    by = [number[i, j] if i < j else len(pairs) + number[j, i] for i in range(n) for j in range(n) if i != j]
    return b.sum(b.reshape(b.index(beaten, dim, by), (*x.shape, n - 1)), [-1], keepdim=False)
