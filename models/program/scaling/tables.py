"""Tables: the place is read as finely as rows are precise, and a result gains bits with each power of it."""

from __future__ import annotations

import math
from typing import Any

import torch

from ....protocols.operations.fourier import WAVE
from ....protocols.operations.lookup import MOST_CHOICES
from ...graph.graph import Node
from ..encoding import quantised_scale
from ..program import ProgramError
from ..scales import PLACE_BITS, Scaler, power_of_two, scale_rule

GUARD = 2
PLACES = 16  # bits


@scale_rule("lookup")
def lookup(at: Scaler, node: Node) -> None:
    _, table = node.args
    assert table.value is not None
    number, scale = _with_units(at, node)
    exponent, (cells, count) = round(math.log2(node.attributes["width"])), table.shape
    low, degree = scale + exponent, count - 1
    fine = min(low, PLACE_BITS) if degree else 0
    wanted = at.target(node)
    if node.shape[-1:] == (1,):  # of a division, say: what counts is the relative error of its smallest rows
        smallest = float(table.value[:, 0].abs().where(table.value[:, 0] != 0, torch.inf).min())
        wanted = max(wanted, at.precision.fraction - math.floor(math.log2(smallest)))
    most = min(wanted + GUARD, at.precision.room - at.bits(node) - fine * degree)
    rows = max(0, quantised_scale(table.value, most))
    at.emit(
        node,
        [number, at.source(table, rows)],
        rows + fine * degree,
        start=round(node.attributes["start"] * 2.0**scale),
        bits=low + round(math.log2(cells)),
        low=low,
        drop=low - fine,
    )
    if node.attributes["beyond"]:
        at.bounded.add(at.number[id(node)])
    if rows == degree == 0:
        at.open_early(node, at.number[id(node)])


@scale_rule("reached")
def reached(at: Scaler, node: Node) -> None:
    """Places are read in few bits, which takes no message; and so is a client's mask. A cell has as many units as two
    bytes hold: among many parties a rescale is off by several."""
    x, *keep = node.args
    width, cells = (round(math.log2(node.attributes[name])) for name in ("width", "cells"))
    scale = max(0, PLACES - cells) - width
    if x.shape[-1] * max(1, node.attributes["cells"] >> 6) > MOST_CHOICES:
        raise _too_wide(node)
    number = at.exactly(x, scale)
    if keep and keep[0].owner == "client":
        number = at.masked(x, number, scale, keep.pop())
    at.emit(node, [number, *(at.source(mask, 0) for mask in keep)], 0, **_place(node, scale))


@scale_rule("exp")
def exp(at: Scaler, node: Node) -> None:
    """What the dealer shares keeps the bits that the table's largest number would else magnify."""
    _, table = node.args
    assert table.value is not None
    number, scale = _with_units(at, node)
    rows = at.precision.fraction - 1  # which are rounded down; the dealer's numbers are not
    fraction = rows - 2 + math.ceil(math.log2(float(table.value.max())))
    rate = node.attributes["width"]
    if 1 << _place(node, scale)["low"] < table.shape[1] - 1:
        raise _too_wide(node)
    place = {**_place(node, scale), "drop": 0, "rate": rate, "fraction": fraction}
    at.emit(node, [number, at.source(table, rows)], rows + fraction, bounded=True, **place)


def _too_wide(node: Node) -> ProgramError:
    span = node.attributes["width"] * node.attributes["cells"]
    return ProgramError(
        f"{node.path or 'model'}: scores span about {span:,.0f}, too much for fixed point; calibrate "
        "on typical inputs, or distil"
    )


def _with_units(at: Scaler, node: Node) -> tuple[int, int]:
    """What is read at a place, with a unit to a cell at least: shifted up, which is free, where cells are smaller."""
    number, scale = at.lowered(node.args[0])
    least = -round(math.log2(node.attributes["width"]))
    return (number, scale) if scale >= least else (at.exactly(node.args[0], least), least)


def _place(node: Node, scale: int) -> dict[str, Any]:
    low = scale + round(math.log2(node.attributes["width"]))
    bits = low + round(math.log2(node.attributes["cells"]))
    return {"start": round(node.attributes["start"] * 2.0**scale), "bits": bits, "low": low}


# Fourier series: a result has the table's bits and those of the dealer's numbers, which large coefficients magnify.


@scale_rule("fourier")
def fourier(at: Scaler, node: Node) -> None:
    x, table, wave = node.args
    assert table.value is not None
    number, scale = at.lowered(x)
    rows, slope = at.precision.fraction + 1, node.attributes["slope"]  # each term is rounded twice
    fraction = at.precision.fraction - 2 + math.ceil(math.log2(float(table.value.abs().sum())))
    bits = scale + round(math.log2(node.attributes["whole"]))
    shift = rows + fraction - scale + round(math.log2(slope)) if slope else 0
    rows, shift = rows + max(0, -shift), max(0, shift)
    at.emit(
        node,
        [number, at.source(table, rows), at.source(wave, WAVE)],
        rows + fraction,
        bits=bits,
        fraction=fraction,
        periods=node.attributes["periods"],
        bounded=True,
        **({"slope": shift} if slope else {}),
    )


# Comparisons: the fewer bits they read, the fewer rounds they take.

_THRESHOLDS = {"threshold", "low", "high"}


@scale_rule("less")
def less(at: Scaler, node: Node) -> None:
    x, thresholds = node.args[0], {name: node.attributes[name] for name in _THRESHOLDS & node.attributes.keys()}
    number, scale = at.lowered(x)
    range_ = at.ranges.get(id(x))
    limit = (range_.reach if range_ and range_.high else 1.0) * 2.0**at.precision.headroom
    # A threshold beyond anything x may be decides alike wherever it lies beyond; nearer, it needs fewer bits. All
    # parties see it, so it says no more of the range than the bits do.
    most = power_of_two(limit)
    thresholds = {name: max(-most, min(most, threshold)) for name, threshold in thresholds.items()}
    bits = max(5, scale + math.ceil(math.log2(limit + max(map(abs, thresholds.values())))) + 2)
    if bits > 49:
        raise ProgramError(f"{node.path or 'model'}: a comparison over {bits} bits is too wide; calibrate again")
    # x < t on the grid: the first point not below t
    whole = {name: math.ceil(threshold * 2.0**scale) for name, threshold in sorted(thresholds.items())}
    tolerance = node.attributes["tolerance"]
    drop = min(max(0, math.floor(math.log2(tolerance)) + scale), bits - 5) if tolerance else 0
    read: dict[str, Any] = {**whole, "bits": bits, **({"drop": drop} if drop else {})}
    at.emit(node, [number], 0, **read)
