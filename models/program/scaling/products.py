"""Products of shared values: scales add up. Operands are rescaled until the product fits."""

from __future__ import annotations

import math

from torch import Tensor

from ....protocols.operations import operations
from ...graph.graph import Node
from ..encoding import constant_scale, is_mask, quantised_scale, weight_scale
from ..program import ProgramError
from ..scales import Scaler, evened_by, scale_rule

# Products with a value that is public, or that one party knows: it is encoded at the scale that suits it.

ENOUGH_BITS = 15  # significant bits of a public constant, where more would cost a round


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
        if constant.op == "constant" and fewer >= constant_scale(_value(constant), ENOUGH_BITS):
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
    scale = at.value(node.args[0])[1] - evened_by(node.args[0])
    wide, x, whose = scale > at.target(node.args[0]) + 2, id(node.args[0]), node.args[1].owner
    lower = wide and (id(node) in at.matrix or (whose == "server" and x in at.narrowed))
    if lower and whose == "public":
        at.narrowed.add(x)
    _stationary(at, node, bits, lower)


def _stationary(at: Scaler, node: Node, bits: int, lower: bool = False) -> None:
    x, known = node.args
    number, scale = at.shortened(x) if known.owner == "server" else at.value(x)
    if lower or not at.fits(node, scale + bits):
        number, scale = at.lowered(x)
    if not at.fits(node, scale + bits):
        scale = at.precision.room - at.bits(node) - bits
        number = at.exactly(x, scale)
    at.emit(node, [number, at.source(known, bits)], scale + bits)


def _value(node: Node) -> Tensor:
    assert node.value is not None
    return node.value


FEW = 4  # bits that a product does without, rather than be rescaled


@scale_rule("product")
def product(at: Scaler, node: Node) -> None:
    """Of operands that are opened elementwise anyway: a rescale is free."""
    _multiplied(at, node, [at.lowered(arg) for arg in node.args], operations()[node.op].powers)
    if node.search and at.scale[id(node)] == 0:  # whether a table counts, whose value comes later
        at.open_early(node, at.number[id(node)])


@scale_rule("matrix")
def matrix(at: Scaler, node: Node) -> None:
    """The smallest operands are rescaled first, and only where the product would not fit; or is much larger than they
    are, so that its bytes count more."""
    wide = math.prod(node.shape) > sum(math.prod(arg.shape) for arg in node.args)
    values = [at.lowered(arg) if arg.is_encoded or wide else at.value(arg) for arg in node.args]
    for i in sorted((0, 1), key=lambda i: math.prod(node.args[i].shape)):
        if not at.fits(node, values[0][1] + values[1][1]):
            values[i] = at.lowered(node.args[i])
    _multiplied(at, node, values, (1, 1))
    if wide and math.isfinite(finest := at.finest[id(node)]):  # at once, rather than what is searched for among them
        at.settle(node, *at.lowered(node, int(finest)))


def _multiplied(at: Scaler, node: Node, values: list[tuple[int, int]], powers: tuple[int, ...]) -> None:
    def total() -> int:
        return sum(power * scale for power, (_, scale) in zip(powers, values, strict=True))

    excess = total() + at.bits(node) - at.precision.room
    if 0 < (summed := total() - at.most.get(id(node), total())) <= FEW:
        excess = max(excess, summed)
    if excess > 0:
        values = _squeezed(at, node, values, powers, excess)
    at.emit(node, [number for number, _ in values], total(), **node.attributes)


def _squeezed(
    at: Scaler, node: Node, values: list[tuple[int, int]], powers: tuple[int, ...], excess: int
) -> list[tuple[int, int]]:
    """Lower all operands below their targets, evenly; refuse when too little would be left."""
    factors = sum(powers)
    one = len({id(arg) for arg in node.args}) == 1  # a power: its factors are lowered alike
    lowered = []
    for i, (arg, (_, scale)) in enumerate(zip(node.args, values, strict=True)):
        bits = -(-excess // factors) if one or i < excess % factors else excess // factors
        if scale - bits < 6:
            raise ProgramError(
                f"{node.path or 'model'}: values up to 2^{at.bits(node)} leave too few bits; calibrate on "
                "typical inputs, or distil"
            )
        lowered.append((at.exactly(arg, scale - bits), scale - bits))
    return lowered


# Arguments at one scale, which the result keeps; and powers of two, which only move the scale.


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
            wanted = min(at.target(node), at.precision.fraction)
            single = arg.owner == "server" and arg.value.numel() == 1  # as in `weight_scale`
            scale = max(scale, wanted if single else quantised_scale(arg.value, wanted))
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


# What is kept for later runs: at one scale in all programs that share it.


@scale_rule("state")
def state(at: Scaler, node: Node) -> None:
    at.emit(node, [], at.state_scale(node.name, node), name=node.name, **node.attributes)


@scale_rule("keep")
def keep(at: Scaler, node: Node) -> None:
    scale = at.state_scale(node.attributes["name"], node)
    at.emit(node, [at.exactly(node.args[0], scale)], scale, **node.attributes)
