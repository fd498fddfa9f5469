"""Polynomials: on one opening if that is precise enough, else with the square as a second one."""

from __future__ import annotations

import math

import torch

from ...graph.graph import Builder, Node
from ...graph.ranges import Range, compute
from ..encoding import fraction_bits, least_scale
from ..scales import Scaler, scale_rule

GUARD = 10  # bits of a polynomial's leading coefficient


@scale_rule("polynomial")
def polynomial(at: Scaler, node: Node) -> None:
    x, coefficients = node.args[0], node.attributes["coefficients"]
    degree = len(coefficients) - 1
    range_ = at.ranges.get(id(x))
    domain = node.attributes["domain"]
    if domain:
        at.ranges.update(_sampled(at, x, domain, [node]))
    top = domain or (range_.reach if range_ else 1.0)
    shift = math.ceil(math.log2(top)) if top > 0 else 0  # x 2^-shift is at most 1 where it counts
    headroom = 0 if domain else at.precision.headroom
    ceiling = 61 - headroom - max(0, at.bits(node))
    lowered = min(at.value(x)[1], at.target(x))
    wanted = min(lowered + shift, max(at.precision.fraction, lowered + shift if at.relative(x) else 0))
    guard = GUARD + 4 if at.relative(x) else GUARD
    scale = min(lowered + shift, (ceiling - guard) // degree)
    if scale < wanted - 1 and degree > 2:
        _split(at, node)
    else:
        number = at.exactly(x, scale - shift)
        scaled = [c * 2.0 ** (shift * k) for k, c in enumerate(coefficients)]
        bits_of = (
            least_scale if at.open else fraction_bits
        )  # every bit less is one less of all that public weights read
        exact = max(k * scale + bits_of(c) for k, c in enumerate(scaled))
        out = min(exact, degree * scale + guard + 2, ceiling)
        integers = [round(c * 2.0 ** (out - k * scale)) for k, c in enumerate(scaled)]
        at.emit(node, [number], out, coefficients=integers)
    if domain:
        at.bounded.add(at.number[id(node)])


def _split(at: Scaler, node: Node) -> None:
    """c0 + c1 x + c2 w + x (c3 w) + c4 w w ... with w = x x rescaled: two openings, at full precision."""
    x, coefficients, domain = node.args[0], node.attributes["coefficients"], node.attributes["domain"]
    if x.op == "ldexp":
        factor = 2.0 ** x.attributes["exponent"]
        x, domain = x.args[0], domain / factor
        coefficients = [c * factor**k for k, c in enumerate(coefficients)]
    builder = Builder()
    builder.path = node.path
    square = builder.mul(x, x)
    even = builder.polynomial(square, coefficients[0::2], domain**2)
    product = builder.mul(x, builder.polynomial(square, coefficients[1::2], domain**2))
    total = builder.add(even, product)
    nodes = _new_nodes(total, {id(x)})
    at.ranges.update(_sampled(at, x, domain, nodes))
    if id(node) in at.ranges:
        at.ranges[id(total)] = at.ranges[id(node)]
    at.kept.append(total)  # ids of nodes are keys: they must not be recycled
    factors = product.args[0].args if product.op == "ldexp" else product.args
    at.opened.update((id(square), *(id(factor) for factor in factors if factor is not x)))
    for item in nodes:
        at.place(item)
    at.settle(node, *at.value(total))


def _sampled(at: Scaler, x: Node, domain: float, nodes: list[Node]) -> dict[int, Range]:
    """Ranges of nodes computed from x alone, over x's calibrated range; over all of the domain that x may reach, since
    powers leave the headroom of x far behind."""
    range_ = at.ranges.get(id(x), Range(0.0, 1.0))
    top = min(range_.high * 2.0**at.precision.headroom, domain) if domain else range_.high
    low = range_.low if at.relative(x) else 0.0 if _is_square(x) else -top
    ranges: dict[int, Range] = {}
    values = {id(x): torch.linspace(low, top, 257, dtype=torch.float64)}
    for node in nodes:
        values[id(node)] = compute(node, [values[id(arg)] for arg in node.args])
        magnitude = values[id(node)].abs()
        ranges[id(node)] = Range(float(magnitude.min()), float(magnitude.max()))
    return ranges


def _is_square(x: Node) -> bool:
    while x.op == "ldexp":
        x = x.args[0]
    return x.op == "mul" and x.args[0] is x.args[1]


def _new_nodes(output: Node, stop: set[int]) -> list[Node]:
    """The nodes under `output` down to, and without, those in `stop`."""
    nodes: list[Node] = []

    def visit(node: Node) -> None:
        if id(node) in stop or any(node is f for f in nodes):
            return
        for arg in node.args:
            visit(arg)
        nodes.append(node)

    visit(output)
    return nodes
