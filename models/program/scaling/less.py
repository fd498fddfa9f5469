"""Comparisons: the fewer bits they read, the fewer rounds they take."""

from __future__ import annotations

import math
from typing import Any

from ...graph.graph import Node
from ..program import ProgramError
from ..scales import Scaler, scale_rule


@scale_rule("less")
def less(at: Scaler, node: Node) -> None:
    x, threshold = node.args[0], node.attributes["threshold"]
    number, scale = at.lowered(x)
    range_ = at.ranges.get(id(x))
    limit = (range_.reach if range_ and range_.high else 1.0) * 2.0**at.precision.headroom
    # A threshold beyond anything x may be decides alike wherever it lies beyond; nearer, it needs fewer bits.
    threshold = max(-limit, min(limit, threshold))
    bits = max(5, scale + math.ceil(math.log2(limit + abs(threshold))) + 2)
    if bits > 49:
        raise ProgramError(f"{node.path or 'model'}: a comparison over {bits} bits is too wide; calibrate again")
    integer = math.ceil(threshold * 2.0**scale)  # x < t on the grid: the first point not below t
    tolerance = node.attributes["tolerance"]
    drop = min(max(0, math.floor(math.log2(tolerance)) + scale), bits - 5) if tolerance else 0
    read: dict[str, Any] = {"threshold": integer, "bits": bits, **({"drop": drop} if drop else {})}
    at.emit(node, [number], 0, **read)
