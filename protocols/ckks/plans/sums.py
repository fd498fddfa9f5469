"""What is linear: composed in the clear, so it costs nothing by itself."""

from __future__ import annotations

import numpy as np

from .. import affine
from ..planner import Planner, plan
from ..values import PlannedInstruction, PlannedValue, element_numbers, scaled, value_of, viewed


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
