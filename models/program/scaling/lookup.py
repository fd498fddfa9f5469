"""Tables: the place is read as finely as rows are precise, and a result gains bits with each power of it."""

from __future__ import annotations

import math
from typing import Any

import torch

from ...graph.graph import Node
from ..encoding import quantised_scale
from ..scales import PLACE_BITS, Scaler, scale_rule

GUARD = 2


@scale_rule("lookup")
def lookup(at: Scaler, node: Node) -> None:
    x, table = node.args
    assert table.value is not None
    number, scale = at.lowered(x)
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


@scale_rule("tail_counts")
def tail_counts(at: Scaler, node: Node) -> None:
    number, scale = at.lowered(node.args[0])
    at.emit(node, [number, *(at.source(keep, 0) for keep in node.args[1:])], 0, **_place(node, scale))


@scale_rule("exp")
def exp(at: Scaler, node: Node) -> None:
    """What the dealer shares keeps the bits that the table's largest number would else magnify."""
    x, table = node.args
    assert table.value is not None
    number, scale = at.lowered(x)
    rows = at.precision.fraction - 1  # which are rounded down; the dealer's numbers are not
    fraction = rows - 2 + math.ceil(math.log2(float(table.value.max())))
    rate = node.attributes["width"]
    place = {**_place(node, scale), "drop": 0, "rate": rate, "fraction": fraction}
    at.emit(node, [number, at.source(table, rows)], rows + fraction, bounded=True, **place)


def _place(node: Node, scale: int) -> dict[str, Any]:
    low = scale + round(math.log2(node.attributes["width"]))
    bits = low + round(math.log2(node.attributes["cells"]))
    return {"start": round(node.attributes["start"] * 2.0**scale), "bits": bits, "low": low}
