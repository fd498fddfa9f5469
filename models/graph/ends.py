"""The least and the largest that a node can be, whatever the inputs: for indices that are secret.

A secret is a whole number where it is made of comparisons: of these, of what they choose from, and of sums and products
the ends follow. Of all else nothing is known, and that is infinity.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .graph import Node

Ends = tuple[float, float]
ANYTHING = (-math.inf, math.inf)
_KEEP = {"reshape", "permute", "expand", "slice", "index", "concat"}
_BITS = {"less", "sides", "reached"}


def ends(node: Node) -> Ends:
    """Of all the node's elements."""
    if node.among is not None:
        low, high = _all_of(node.among)
        return max(low, node.limits[0]), max(min(high, node.limits[1]), node.limits[0])
    if node.op in _BITS or node.attributes.get("binary"):
        return 0.0, 1.0
    if node.op == "constant":
        assert node.value is not None
        return (float(node.value.min()), float(node.value.max())) if node.value.numel() else (0.0, 0.0)
    if node.op in _KEEP:
        return _all_of(node.args)
    if node.op == "sum":
        count = math.prod(node.args[0].shape) // max(math.prod(node.shape), 1)
        return _products(ends(node.args[0]), (count, count))
    if node.op == "neg":
        return _products(ends(node.args[0]), (-1.0, -1.0))
    if node.op == "ldexp":
        factor = 2.0 ** node.attributes["exponent"]
        return _products(ends(node.args[0]), (factor, factor))
    if node.op in ("add", "sub", "mul", "mul_public", "mul_private"):
        left, right = (ends(arg) for arg in node.args)
        if node.op == "add":
            return left[0] + right[0], left[1] + right[1]
        return (left[0] - right[1], left[1] - right[0]) if node.op == "sub" else _products(left, right)
    return ANYTHING


def _all_of(nodes: list[Node]) -> Ends:
    each = [ends(node) for node in nodes]
    return min(low for low, _ in each), max(high for _, high in each)


def _products(x: Ends, y: Ends) -> Ends:
    """Infinity times 0 is 0 here: whatever it is, it is a number."""
    products = [a * b if a and b else 0.0 for a in x for b in y]
    return min(products), max(products)
