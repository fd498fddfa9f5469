"""Products of shared values: scales add up. Operands are rescaled until the product fits."""

from __future__ import annotations

import math

from ....protocols.operations import operations
from ...graph.graph import Node
from ..program import ProgramError
from ..scales import Scaler, scale_rule

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
                f"{node.path or 'model'}: values up to 2^{at.bits(node)} leave too few bits for a product; "
                "calibrate on typical inputs, or regularise the range when distilling"
            )
        lowered.append((at.exactly(arg, scale - bits), scale - bits))
    return lowered
