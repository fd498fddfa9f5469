"""Which groups of layers a model calls in one pass, and with how many rows: known before the first message is sent.

A server sees this sequence, so it must follow from shapes alone. A rehearsal runs the model with noise in the place of
every delegated answer: it needs no weights of these layers, and two rehearsals read different contents. A layer that
they call differently (an expert, a branch) would tell a server about the text, so the client computes it itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BlindformerError
from .calls import Interception
from .layers import LayerGroup, LinearLayer, ParameterIndex

LEAST_PRODUCTS = 8  # multiplications for each number that is sent, below which the client computes a layer itself


class DelegationError(BlindformerError):
    """A model, or a call of one, that cannot be delegated."""


@dataclass(frozen=True)
class LayerCall:
    """`reads`: a number for each input that calls in a row share."""

    layer: LinearLayer
    rows: int
    reads: int


@dataclass
class Rehearsal:
    """The calls of one pass. `kept`: parameters that the client computes with. It answers as `LinearCalls`."""

    seed: int
    kept: Collection[str] = ()
    calls: list[LayerCall] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    _last: Tensor | None = None

    def __post_init__(self) -> None:
        self._noise = torch.Generator().manual_seed(self.seed)

    def answer(self, layer: LinearLayer, x: Tensor) -> Tensor | None:
        if layer.parameter in self.kept:
            return None
        same = self._last is not None and self._last.shape == x.shape and torch.equal(self._last, x)
        reads = self.calls[-1].reads + (not same) if self.calls else 0
        self._last = x.clone()
        self.calls.append(LayerCall(layer, len(x), reads))
        size = x.square().mean(-1, keepdim=True).sqrt() if len(x) else x.new_zeros(0, 1)
        return torch.randn(len(x), layer.outputs, generator=self._noise) * torch.nan_to_num(size, 1.0).clamp(1e-3, 1e3)

    def used(self, parameter: str) -> None:
        self.others.add(parameter)


def rehearse(index: ParameterIndex, run: Callable[[], Any], kept: Collection[str] = (), seed: int = 0) -> Rehearsal:
    """`run` calls the model whose parameters `index` knows."""
    rehearsal = Rehearsal(seed, kept)
    with torch.no_grad(), torch.random.fork_rng(devices=()), Interception(index, rehearsal):
        run()
    return rehearsal


@dataclass(frozen=True)
class Layers:
    """The delegated layers of a model: its groups, and the parameters that the client computes with itself."""

    groups: tuple[LayerGroup, ...]
    kept: frozenset[str]

    @property
    def parameters(self) -> frozenset[str]:
        """The delegated ones."""
        return frozenset(layer.parameter for group in self.groups for layer in group.layers)


def delegated_layers(module: nn.Module, run: Callable[[], Any], keep: Collection[str] = ()) -> Layers:
    """The layers of a model that can be delegated. `run` calls the model, and does the same each time. `keep`:
    parameters that stay with the client anyhow.

    Errors: DelegationError, where none can.
    """
    index, kept = ParameterIndex(module), set(keep)
    while True:
        first, second = (rehearse(index, run, kept, seed) for seed in (0, 1))
        more = (first.others | second.others | _too_small(first.calls) | _different(first.calls, second.calls)) - kept
        more &= {call.layer.parameter for call in (*first.calls, *second.calls)}
        if not more:
            break
        kept |= more
    groups = tuple(dict.fromkeys(LayerGroup(layers) for layers, _ in _in_groups(first.calls)))
    if not groups:
        raise DelegationError("model: has no linear layer that is worth delegating; compute it where the text is")
    return Layers(groups, frozenset(index.parameters.keys() - {x.parameter for g in groups for x in g.layers}))


def _too_small(calls: Sequence[LayerCall]) -> set[str]:
    layers = {call.layer for call in calls}
    return {x.parameter for x in layers if x.inputs * x.outputs < LEAST_PRODUCTS * (x.inputs + x.outputs)}


def _different(first: Sequence[LayerCall], second: Sequence[LayerCall]) -> set[str]:
    """Parameters that two passes with other contents call differently."""
    one, two = ([(call.layer, call.rows) for call in calls] for calls in (first, second))
    if one == two:
        return set()
    counts = Counter(one), Counter(two)
    odd = {layer.parameter for layer, rows in {*one, *two} if counts[0][layer, rows] != counts[1][layer, rows]}
    return odd or {a[0].parameter for a, b in zip(one, two, strict=True) if a != b}


def _in_groups(calls: Sequence[LayerCall]) -> list[tuple[tuple[LinearLayer, ...], int]]:
    """Calls in a row that read one input, each with its rows."""
    groups: list[tuple[list[LinearLayer], int, int]] = []
    for call in calls:
        if groups and groups[-1][2] == call.reads and call.layer not in groups[-1][0]:
            groups[-1][0].append(call.layer)
        else:
            groups.append(([call.layer], call.rows, call.reads))
    return [(tuple(layers), rows) for layers, rows, _ in groups]


GroupCalls = tuple[tuple[int, int], ...]
"""Of one pass: number of a group and its rows, call by call."""


def sequence_of(groups: Sequence[LayerGroup], calls: Sequence[LayerCall]) -> GroupCalls:
    """The groups that these calls ask for. Errors: DelegationError for a layer that no group has."""
    steps: list[tuple[int, int]] = []
    opened: set[LinearLayer] = set()
    reads = -1
    for call in calls:
        if call.reads == reads and call.layer in opened:
            continue
        number = group_with(groups, call.layer)
        steps.append((number, call.rows))
        opened, reads = set(groups[number].layers), call.reads
    return tuple(steps)


def group_with(groups: Sequence[LayerGroup], layer: LinearLayer) -> int:
    """The group that a call of this layer asks for. Errors: DelegationError."""
    for number, group in enumerate(groups):
        if layer == group.layers[0]:
            return number
    for number, group in enumerate(groups):
        if layer in group.layers:
            return number
    raise DelegationError(f"{layer.parameter}: is called otherwise than when the model was prepared; prepare it again")
