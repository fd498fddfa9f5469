"""What calibration sees of every value: its largest and smallest magnitude over real inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..protocols.errors import BlindformerError
from .graph import Node
from .reference import fixed_values, run


class CalibrationFailure(BlindformerError):
    """A value became NaN or infinite on the calibration inputs."""


@dataclass
class Range:
    """Magnitudes of one value: `high` the largest, `low` the smallest seen."""

    low: float
    high: float

    def widen(self, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)


def measure(nodes: list[Node], batches: Iterable[Mapping[str, Tensor] | None]) -> dict[int, Range]:
    """Run the graph on every batch (None: the example's own inputs); return the range of each node."""
    found: dict[int, Range] = {}

    def observe(node: Node, value: Tensor, args: list[Tensor]) -> None:
        magnitude = value.abs()
        low, high = (float(end) for end in magnitude.aminmax()) if magnitude.numel() else (0.0, 0.0)
        if not math.isfinite(high):  # NaN comes through as the largest
            raise CalibrationFailure(
                f"{node.path or 'model'}: {node.op} gives NaN or infinity on the calibration inputs; "
                "calibrate the plan on more inputs, or choose another approximation for this layer"
            )
        domain = node.attributes.get("domain", 0.0)
        if node.op == "polynomial" and domain:
            # Outside its domain a polynomial's result is multiplied by an exact zero: its size there does not matter.
            magnitude = magnitude[args[0].abs() <= domain]
            low, high = (float(end) for end in magnitude.aminmax()) if magnitude.numel() else (0.0, 0.0)
        if not magnitude.numel():
            return
        if id(node) in found:
            found[id(node)].widen(low, high)
        else:
            found[id(node)] = Range(low, high)

    fixed = fixed_values(nodes)
    for node in nodes:
        if id(node) in fixed:
            observe(node, fixed[id(node)], [])
    for batch in batches:
        run(nodes, batch, observe, fixed)
    return found
