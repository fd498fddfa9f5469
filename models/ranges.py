"""What calibration sees of every value: its largest and smallest magnitude over real inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..protocols.errors import BlindformerError
from .graph import Node
from .reference import fixed_values, run

TAIL = 8  # inputs that are needed to tell a tail from chance
MOST = 8.0  # the largest factor by which one input's excess over all others widens a range


class CalibrationFailure(BlindformerError):
    """A value became NaN or infinite on the calibration inputs."""


@dataclass
class Range:
    """Magnitudes of one value over `inputs`: `high` the largest, `low` the smallest, `second` the largest but for the
    input that showed `high`."""

    low: float
    high: float
    second: float = 0.0
    inputs: int = 1

    def widen(self, low: float, high: float) -> None:
        """By what one more input shows."""
        self.second = max(self.second, min(self.high, high))
        self.low, self.high, self.inputs = min(self.low, low), max(self.high, high), self.inputs + 1

    @property
    def reach(self) -> float:
        """What the next input may come to, before headroom: one that passed all others by a factor may be passed so."""
        if self.inputs < TAIL or not self.second:
            return self.high
        return self.high * min(max(1.0, self.high / self.second / 2), MOST)


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
        if node.coarse:
            high = max(high, _spread(args, node.coarse))
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
    _any_place(nodes, found)
    return found


def _spread(halves: list[Tensor], dim: int) -> float:
    """The largest difference of any two elements of a row, given its two halves."""
    ends = [torch.stack([half.amax(dim), -half.amin(dim)]) for half in halves]
    return float(torch.maximum(*ends).sum(0).max())


def _any_place(nodes: list[Node], found: dict[int, Range]) -> None:
    """In the search for a row's maximum, what meets what depends on the length of the text: whether the elements that
    meet last are words or padding. So each step is given the reach of the whole row."""
    reach: dict[int, float] = {}
    for node in nodes:
        if id(node) not in found or node.op not in ("sub", "mul", "slice", "concat"):
            continue
        before = max((reach.get(id(arg), 0.0) for arg in node.args), default=0.0)
        if node.coarse:
            before = max(before, found[id(node)].high)
        if before:
            reach[id(node)] = before
        if node.coarse or node.op == "mul":
            found[id(node)] = Range(found[id(node)].low, max(found[id(node)].high, before))
