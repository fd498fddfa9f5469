"""The order of secrets, from a comparison of every pair: two rounds of comparisons, N (N - 1) / 2 in the first."""

from __future__ import annotations

from itertools import combinations, pairwise

import torch

from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand
from . import rule

MOST = 128  # elements of a row


@rule("topk")
def topk(
    lowering: Lowering, x: Operand, k: int, dim: int = -1, largest: bool = True, in_order: bool = True
) -> list[Node]:
    """The first k, the best first, and their places. Of equal ones the earlier is first."""
    b, node = lowering.builder, lowering.as_node(x)
    dim %= len(node.shape)
    count = node.shape[dim]
    if count > MOST:
        raise lowering.fail(f"the order of {count} secrets has no rule, of {MOST} it has; use amax, or fewer")
    last = b.transpose(node, dim, -1)
    ranks = _ranks(lowering, last if largest else b.neg(last))
    bits = steps(lowering, ranks, k)  # [..., N, k]
    values = b.sum(b.mul(b.reshape(last, (*last.shape, 1)), bits), [-2], keepdim=False)
    numbers = b.constant(torch.arange(float(count)).reshape(count, 1))
    places = b.sum(b.mul(bits, numbers), [-2], keepdim=False)
    return [b.transpose(result, dim, -1) for result in (values, places)]


@rule("sort")
def sort(lowering: Lowering, x: Operand, dim: int = -1, descending: bool = False) -> list[Node]:
    return topk(lowering, x, lowering.as_node(x).shape[dim], dim, descending)


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
