"""What is linear: composed in the clear, so it costs nothing by itself."""

from __future__ import annotations

import numpy as np

from ...ring import signed
from .. import affine
from ..planner import Planner, plan
from ..values import FactoredValue, PlannedInstruction, PlannedValue, element_numbers, equal, scaled, value_of, viewed


@plan("reshape", "permute", "expand", "slice", "index", "unfold")
def view(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    return scaled(viewed(item.op, args[0], item.attributes), scales[0] - item.scale)


@plan("shift", "rescale", "reveal")
def moved(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    bits = item.attributes.get("bits", 0) * (1 if item.op == "shift" else -1)
    return scaled(args[0], scales[0] + bits - item.scale)


@plan("neg")
def neg(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    return scaled(args[0], scales[0] - item.scale, -1.0)


@plan("add", "sub")
def add(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    x, y = (planner.form(v).scaled(2.0 ** (s - item.scale)) for v, s in zip(args, scales, strict=True))
    return value_of(affine.add(x, y.scaled(-1.0 if item.op == "sub" else 1.0)), item.shape)


@plan("sum")
def total(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    dims = sorted(d % args[0].at.ndim for d in item.attributes["dims"])
    kept = [d for d in range(args[0].at.ndim) if d not in dims]
    places = args[0].at.transpose(*kept, *dims)
    places = places.reshape(*places.shape[: len(kept)], -1)
    return value_of(affine.total(planner.form(args[0], places)).scaled(2.0 ** (scales[0] - item.scale)), item.shape)


@plan("concat")
def concat(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    parts = [planner.form(v).scaled(2.0 ** (s - item.scale)) for v, s in zip(args, scales, strict=True)]
    starts = np.cumsum([0, *(part.size for part in parts)])
    numbers = [start + element_numbers(value.at.shape) for start, value in zip(starts, args, strict=False)]
    places = np.concatenate(numbers, axis=item.attributes["dim"])
    return value_of(affine.gather(affine.stack(parts), places), item.shape)


# Products element by element, and powers: a step on ciphertexts where both factors are secret.


@plan("mul", "mul_public", "mul_private")
def multiply(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    factor = 2.0 ** (sum(scales) - item.scale)
    for one, other in (args, args[::-1]):
        value = planner.form(other).known() if other.form is not None else None
        if value is not None:
            return value_of(affine.times(planner.form(one), value).scaled(factor), item.shape)
    wide = [value.viewed(np.broadcast_to(value.at, item.shape)) for value in args]
    left = right = planner.held(wide[0], item.shape, planner.scores(wide[1]))
    if not equal(wide[0], wide[1]):
        right = planner.held(wide[1], item.shape, left.base.layout)
        if not left.base.layout.same(right.base.layout):
            left = planner.held(wide[0], item.shape, right.base.layout, again=True)
    return planner.multiplied(left, right, item.shape, factor)


@plan("polynomial")
def polynomial(planner: Planner, item: PlannedInstruction, args: list[PlannedValue], scales: list[int]) -> PlannedValue:
    """Powers by products, as few in sequence as there can be; coefficients are left to whoever reads the sum."""
    coefficients = item.attributes["coefficients"]
    c = [signed(v) * 2.0 ** (k * scales[0] - item.scale) for k, v in enumerate(coefficients)]
    while len(c) > 1 and c[-1] == 0:
        c.pop()
    if len(c) == 3:  # c2 (x + c1 / 2 c2)^2 + the rest: a square of one affine map
        shifted = value_of(affine.add(planner.form(args[0]), affine.known(np.array([c[1] / (2 * c[2])]))), item.shape)
        factored = planner.held(shifted, item.shape, None)
        square = planner.form(planner.multiplied(factored, factored, item.shape, c[2]))
        return value_of(affine.add(square, affine.known(np.array([c[0] - c[1] ** 2 / (4 * c[2])]))), item.shape)
    factored = planner.held(args[0], item.shape, None)
    powers = {1: factored}
    out = affine.add(planner.form(args[0]).scaled(c[1] if len(c) > 1 else 0.0), affine.known(np.array([c[0]])))
    if len(c) > 2:  # what lies in ciphertexts already is read from there
        out = affine.known(np.full(item.shape or (1,), c[0]))
    for k in range(2, len(c)):
        if c[k] != 0:
            out = affine.add(out, planner.form(_power(planner, powers, k, item.shape)).scaled(c[k]))
    if len(c) > 2 and c[1] != 0:
        out = affine.add(out, planner.read(factored, item.shape).scaled(c[1]))
    return value_of(out, item.shape)


def _power(planner: Planner, powers: dict[int, FactoredValue], k: int, shape: tuple[int, ...]) -> PlannedValue:
    """x^k, its ciphertexts kept for higher ones. Half of k is rounded to a power of two: products are shared."""
    high = 1 << (k - 1).bit_length() - 1
    for part in (high, k - high):
        if part not in powers:
            _power(planner, powers, part, shape)
    value = planner.multiplied(powers[high], powers[k - high], shape)
    powers[k] = planner.held(value, shape, None)
    return value
