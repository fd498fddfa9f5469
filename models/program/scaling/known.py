"""Products with a value that is public, or that one party knows: it is encoded at the scale that suits it."""

from __future__ import annotations

from torch import Tensor

from ...graph.graph import Node
from ..encoding import constant_scale, is_mask, weight_scale
from ..scales import Scaler, scale_rule

ENOUGH = 15  # significant bits of a public constant, where more would cost a round


@scale_rule("public")
def public(at: Scaler, node: Node) -> None:
    x, constant = node.args
    # Small tensors have bits to spare, and the steps of a division need them.
    bits = constant_scale(_value(constant), at.precision.constants + (6 if node.shape[-1:] == (1,) else 0))
    if constant.op == "client":  # the example's own bits are by chance
        bits = 0 if is_mask(constant) else at.precision.constants - max(0, at.bits(constant))
    number, scale = at.lowered(x) if id(x) in at.opened else at.value(x)
    if not at.fits(node, scale + bits):
        fewer = at.precision.room - at.bits(node) - scale
        if constant.op == "constant" and fewer >= constant_scale(_value(constant), ENOUGH):
            bits = fewer  # rather than a rescale
        else:
            number, scale = at.lowered(x)
    if not at.fits(node, scale + bits):
        scale = at.precision.room - bits - at.bits(node)
        number = at.exactly(x, scale)
    at.emit(node, [number, at.source(constant, bits)], scale + bits)


@scale_rule("private")
def private(at: Scaler, node: Node) -> None:
    value = node.args[1]
    bits = 0 if is_mask(value) else weight_scale(_value(value), at.precision.fraction + 2)
    if value.owner == "client" and not is_mask(value):
        bits = at.precision.fraction + 1 - max(0, at.bits(value))  # the example's own bits are by chance
    _stationary(at, node, bits)


@scale_rule("linear")
def linear(at: Scaler, node: Node) -> None:
    bits = weight_scale(_value(node.args[1]), at.precision.weights)
    scale = at.value(node.args[0])[1]
    wide = scale > at.target(node.args[0]) + 2
    _stationary(at, node, bits, lower=wide and id(node) in at.matrix)


def _stationary(at: Scaler, node: Node, bits: int, lower: bool = False) -> None:
    x, known = node.args
    number, scale = at.value(x)
    if lower or not at.fits(node, scale + bits):
        number, scale = at.lowered(x)
    if not at.fits(node, scale + bits):
        scale = at.precision.room - at.bits(node) - bits
        number = at.exactly(x, scale)
    at.emit(node, [number, at.source(known, bits)], scale + bits)


def _value(node: Node) -> Tensor:
    assert node.value is not None
    return node.value
