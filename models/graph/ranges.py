"""What calibration sees of every value: its largest magnitude over real inputs, of single numbers the smallest, too."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count, takewhile

import torch
from torch import Tensor

from ...cores import cores
from ...protocols.errors import BlindformerError
from ...protocols.operations import operations
from .graph import Node

# Runs a graph in float64: the reference for passes, and how calibration sees every intermediate value.


def compute(node: Node, args: list[Tensor]) -> Tensor:
    """One node's value from its arguments'; a source's own."""
    if node.is_source:
        assert node.value is not None
        return node.value.to(torch.float64)
    if node.op == "ldexp":  # of graphs alone: a Program moves the scale instead
        return args[0] * 2.0 ** node.attributes["exponent"]
    return operations()[node.op].on_reals(*args, **node.attributes)


def fixed_values(nodes: list[Node]) -> dict[int, Tensor]:
    """Values of what is the same in every run: weights and constants, float64."""
    return {id(node): compute(node, []) for node in nodes if node.op in ("weight", "constant")}


def steps(
    nodes: list[Node], clients: Mapping[str, Tensor] | None = None, fixed: Mapping[int, Tensor] | None = None
) -> Iterator[tuple[Node, Tensor, list[Tensor]]]:
    """Each node with its value and its arguments' values, float64, but none of `fixed`: values known already.

    `clients`: the client's tensors and states by name (default: the example's). A value is let go after its last use.
    """
    last = {id(arg): node for node in nodes for arg in node.args}
    values = dict(fixed or {})
    for node in nodes:
        if id(node) in values:
            continue
        args = [values[id(arg)] for arg in node.args]
        if node.op in ("client", "state") and clients is not None:
            value = clients[node.name].to(torch.float64)
        else:
            value = compute(node, args)
        yield node, value, args
        for arg in node.args:
            if last[id(arg)] is node:
                values.pop(id(arg), None)
        if id(node) in last:
            values[id(node)] = value


def run(nodes: list[Node], clients: Mapping[str, Tensor] | None = None) -> dict[int, Tensor]:
    """Values of all nodes by id, as of `steps`."""
    return {id(node): value for node, value, _ in steps(nodes, clients)}


TAIL = 8  # inputs that are needed to tell a tail from chance
AT_ONCE = 8  # inputs that are measured, each with values of its own
MOST = 8.0  # the largest factor by which one input's excess over all others widens a range


class CalibrationFailure(BlindformerError):
    """A value became NaN or infinite on the calibration inputs."""


@dataclass
class Range:
    """Magnitudes of one value over `inputs`: `high` the largest, `low` the smallest where rows are single numbers (else
    0), `second` the largest but for the input that showed `high`."""

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


Seen = tuple[Node, float, float, Tensor | None]
"""A node, the smallest and the largest magnitude of its value, and the ends of the row that it compares, if any."""


def measure(
    nodes: list[Node],
    batches: Iterable[Mapping[str, Tensor] | None],
    progress: Callable[[int], None] = lambda done: None,
) -> dict[int, Range]:
    """Run the graph on every batch (None: the example's own inputs), several at once; return each node's range.
    `progress` is told how many batches are done, from none on."""
    ranges: dict[int, Range] = {}
    rows: dict[int, Tensor] = {}
    fixed = fixed_values(nodes)

    ended = threading.Event()

    def run(number: int, batch: Mapping[str, Tensor] | None) -> list[Seen | None]:
        some = takewhile(lambda _: not ended.is_set(), steps(nodes, batch, fixed))
        return [_observed(*step, whole=number == 0) for step in some]

    def widen(node: Node, low: float, high: float, ends: Tensor | None) -> None:
        if node.search and node.op in ("add", "mul"):  # tables of which one counts, each times a bit that says so
            highs = [ranges[id(arg)].high for arg in node.args if id(arg) in ranges]
            high = max([high, *highs] if node.op == "add" else [high, math.prod(highs)])
        if ends is not None:
            rows[id(node)] = torch.maximum(ends, rows.get(id(node), torch.zeros(2)))
        if id(node) in ranges:
            ranges[id(node)].widen(low, high)
        else:
            ranges[id(node)] = Range(low, high)

    known = [_observed(node, fixed[id(node)], [], whole=False) for node in nodes if id(node) in fixed]
    free = cores() // torch.get_num_threads()  # torch takes the others by itself
    pool = ThreadPoolExecutor(max(1, min(free, AT_ONCE)))
    try:
        for done, one in enumerate(chain([known], pool.map(run, count(), batches))):
            progress(done)
            for seen in one:
                if seen is not None:
                    widen(*seen)
    finally:  # after an error, too, or Ctrl-C
        ended.set()
        pool.shutdown(cancel_futures=True)
    _any_place(nodes, ranges, rows)
    return ranges


def _observed(node: Node, value: Tensor, args: list[Tensor], whole: bool) -> Seen | None:
    """What one input shows. `whole`: also all that a function may be on its domain.

    Errors: CalibrationFailure.
    """
    single = node.shape[-1:] == (1,)
    low, high = _magnitudes(value, single)
    if not math.isfinite(high):  # NaN comes through as the largest
        raise CalibrationFailure(
            f"{node.path or 'model'}: {node.op} gives NaN or infinity in calibration; use more inputs, or "
            "another approximation"
        )
    if node.op == "lookup":  # what any row may say
        high = max(high, float(args[1].abs().sum(-1).max()))
    numbers = value.numel()
    if domain := node.attributes.get("domain", 0.0):
        # Outside its domain a polynomial's result is multiplied by an exact zero: its size there does not matter.
        inside = args[0].abs() <= domain
        numbers = int(inside.sum())
        low, high = _magnitudes(value[inside] if single else value.where(inside, 0.0), single)
        if whole and node.op in ("exp", "fourier"):  # what they may be at all, which is little
            high = max(high, float(compute(node, [_all_within(domain), *args[1:]]).abs().max()))
    ends = _ends(args, node.row) if node.row else None
    return (node, low, high, ends) if numbers or high else None


def _magnitudes(value: Tensor, single: bool) -> tuple[float, float]:
    """The smallest, of single numbers, and the largest."""
    if not value.numel():
        return 0.0, 0.0
    low, high = (float(end) for end in (value.abs() if single else value).aminmax())
    return (low, high) if single else (0.0, max(-low, high))


def _all_within(domain: float) -> Tensor:
    """Points up to a domain's end, but for the end itself."""
    return torch.linspace(-abs(domain), domain - abs(domain) / 512, 512, dtype=torch.float64)


def transferred(known: list[Node], ranges: Mapping[int, Range], nodes: list[Node]) -> dict[int, Range]:
    """The ranges of a graph's nodes as those of another graph's, which is the same but for shapes.

    Where rows are of another length, the search for their largest elements has other steps: each gets the widest range
    of the other graph's steps of its kind and module.

    Errors: CalibrationFailure if it is not the same.
    """
    old, new = ([node for node in graph if not node.search] for graph in (known, nodes))
    if [(n.op, n.path, len(n.args)) for n in old] != [(n.op, n.path, len(n.args)) for n in new]:
        raise CalibrationFailure("model: computes otherwise at another number of tokens, so its ranges are not known")
    moved = {id(node): ranges[id(same)] for same, node in zip(old, new, strict=True) if id(same) in ranges}
    widest: dict[tuple[str, str], Range] = {}
    for node in known:
        if node.search and id(node) in ranges:
            for kind in (_step(node), (node.path, "")):
                seen, here = widest.get(kind), ranges[id(node)]
                widest[kind] = here if seen is None or here.high > seen.high else seen
    for node in nodes:
        if node.search:
            moved[id(node)] = widest[_step(node) if _step(node) in widest else (node.path, "")]
    return moved


def _step(node: Node) -> tuple[str, str]:
    return node.path, f"{node.op} of a row" if node.row else node.op


def _ends(halves: list[Tensor], dim: int) -> Tensor:
    """Of a row, given its halves: the largest difference of any two elements, and the largest magnitude."""
    both = torch.cat(halves, dim)
    return torch.stack([(both.amax(dim) - both.amin(dim)).max(), both.abs().max()])


def _any_place(nodes: list[Node], ranges: dict[int, Range], rows: dict[int, Tensor]) -> None:
    """In search of a row's largest element, what meets what depends on the input: on where words end and padding
    begins, say. So every step is given the reach of the whole row, as it is where the search begins."""
    for node in nodes:
        if id(node) not in ranges or not _searches(node):
            continue
        known = [rows[id(arg)] for arg in (node, *node.args) if id(arg) in rows]
        if known:
            spread, top = rows[id(node)] = torch.stack(known).amax(0)
            reach = float(spread if node.row or node.op == "mul" else top)
            ranges[id(node)] = Range(ranges[id(node)].low, max(ranges[id(node)].high, reach))


def _searches(node: Node) -> bool:
    """Whether a node may be a step of a search: a - bit * (a - b) of parts of a row (Builder.maximum)."""
    if node.op == "mul":
        return any(arg.row for arg in node.args)
    if node.op == "sub":
        return bool(node.row) or (node.args[1].op == "mul" and _searches(node.args[1]))
    return node.op in ("slice", "concat")
