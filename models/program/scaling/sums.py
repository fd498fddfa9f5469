"""Arguments at one scale, which the result keeps; and powers of two, which only move the scale."""

from __future__ import annotations

import math

from ...graph.graph import Node
from ..encoding import quantised_scale
from ..scales import Scaler, scale_rule


@scale_rule("aligned")
def aligned(at: Scaler, node: Node) -> None:
    scale = at.common(node)
    if not at.fits(node, scale - 1):  # a sum of many; its reader's rescale has a bit to spare
        scale = at.precision.room - at.bits(node)
    args = [at.exactly(arg, scale) for arg in node.args]
    at.emit(node, args, scale, **node.attributes)


@scale_rule("sum")
def summed(at: Scaler, node: Node) -> None:
    scale = at.common(node)
    for arg in node.args:
        if arg.is_encoded and arg.value is not None:  # beside counts, say, which have no fractional bits
            scale = max(scale, quantised_scale(arg.value, min(at.target(node), at.precision.fraction)))
    if not at.fits(node, scale):
        # Rescaling the smaller argument to the larger one's scale is cheap; both only if that does not fit either.
        largest = max((a for a in node.args if id(a) in at.scale), key=lambda a: math.prod(a.shape))
        scale = min(at.scale[id(largest)], at.precision.room - at.bits(node))
    at.emit(node, [at.exactly(arg, scale) for arg in node.args], scale)


@scale_rule("ldexp")
def moved(at: Scaler, node: Node) -> None:
    """The instruction is the same; only what its integers mean has changed."""
    number, scale = at.value(node.args[0])
    at.settle(node, number, scale - node.attributes["exponent"])
