"""Which groups of layers a model calls in one pass, and with how many rows: known before the first message is sent.

A server sees this sequence, so it must follow from shapes alone. A rehearsal runs the model with noise in the place of
every delegated answer: it needs no weights of these layers. Two rehearsals read different contents: other noise, and
other inputs of the same shapes. A layer that they call differently (an expert, a branch) would tell a server about the
text, so the client computes it itself.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import BlindformerError
from ..loading.adapters import is_added
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
class LayerRehearsal:
    """The calls of one pass. `kept`: parameters that the client computes with. It answers as `LinearCalls`."""

    seed: int
    kept: Collection[str] = ()
    calls: list[LayerCall] = field(default_factory=list)
    others: set[str] = field(default_factory=set)
    _last: Tensor | None = None

    def __post_init__(self) -> None:
        # Each second one has the noise of the one before, negated: what asks for a sign goes both ways.
        self._noise, self._sign = torch.Generator().manual_seed(self.seed // 2), (-1) ** self.seed

    def answer(self, layer: LinearLayer, x: Tensor) -> Tensor | None:
        if layer.parameter in self.kept:
            return None
        same = self._last is not None and same_content(self._last, x)
        reads = self.calls[-1].reads + (not same) if self.calls else 0
        self._last = x.clone()
        self.calls.append(LayerCall(layer, len(x), reads))
        size = x.square().mean(-1, keepdim=True).sqrt() if len(x) else x.new_zeros(0, 1)
        noise = torch.randn(len(x), layer.outputs, generator=self._noise)
        return self._sign * noise * torch.nan_to_num(size, 1.0).clamp(1e-3, 1e3)

    def used(self, parameter: str) -> None:
        self.others.add(parameter)


def rehearse(
    index: ParameterIndex, run: Callable[[], Any], kept: Collection[str] = (), seed: int = 0
) -> LayerRehearsal:
    """`run` calls the model whose parameters `index` knows."""
    rehearsal = LayerRehearsal(seed, kept)
    with torch.no_grad(), torch.random.fork_rng(devices=()), Interception(index, rehearsal):
        run()
    return rehearsal


def same_content(one: Tensor, other: Tensor) -> bool:
    """Of float32, bit by bit: numbers that are none are the same, too."""
    return one.shape == other.shape and torch.equal(one.view(torch.int32), other.view(torch.int32))


def rehearse_twice(
    index: ParameterIndex, one: Callable[[], Any], other: Callable[[], Any], kept: Collection[str] = (), seed: int = 0
) -> tuple[LayerRehearsal, LayerRehearsal]:
    """`other`: calls the model with another content, which it need not take. `seed`: an even one."""
    first = rehearse(index, one, kept, seed)
    try:
        return first, rehearse(index, other, kept, seed + 1)
    except Exception:  # a model's own, of any kind: it takes no such content, so nobody sends it
        return first, rehearse(index, one, kept, seed + 1)


STRUCTURE = ("position_ids", "cache_position", "head_mask")  # inputs that say where, and hold no content


def other_content(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of the same shapes: other padding, other tokens, and numbers of another sign."""
    changed = {}
    for name, value in inputs.items():
        is_content = isinstance(value, Tensor) and value.numel() > 1 and name not in STRUCTURE
        changed[name] = _other_tensor(value, "mask" in name) if is_content else value
    return changed


def _other_tensor(x: Tensor, is_mask: bool) -> Tensor:
    if is_mask or x.dtype == torch.bool:
        if x.is_floating_point():
            return x
        other = torch.ones_like(x)
        other[..., -1] = bool((x == 0).any())
        return other
    if x.is_floating_point():
        return -x
    common = x.flatten().mode().values  # of a text with padding: the padding
    others = x[x != common]
    if len(others) < x.numel() - 1:
        return torch.where(x == common, others[0], x) if len(others) else x
    other = x.clone()
    other[..., 1:-1] = 0
    return other


@dataclass(frozen=True)
class Layers:
    """The delegated layers of a model: its groups, and the parameters that the client computes with itself."""

    groups: tuple[LayerGroup, ...]
    kept: frozenset[str]

    @property
    def parameters(self) -> frozenset[str]:
        """The delegated ones."""
        return frozenset(layer.parameter for group in self.groups for layer in group.layers)


def delegated_layers(
    module: nn.Module,
    run: Callable[[], Any],
    fill: Callable[[Collection[str]], bool] = lambda names: False,
) -> Layers:
    """The layers of a model that can be delegated. `run` calls the model, and does the same each time. The
    parameters of an adapter stay with the client, whose own it is. `fill` gives these parameters their numbers, and
    says whether one of them had none yet.

    Errors: DelegationError, where none can.
    """
    index = ParameterIndex(module)
    kept = set(filter(is_added, index.parameters))

    def other() -> Any:
        changed = module.register_forward_pre_hook(
            lambda _, args, given: (args, other_content(given)), with_kwargs=True
        )
        try:
            return run()
        finally:
            changed.remove()

    while True:
        first, *more = (*rehearse_twice(index, run, other, kept), *rehearse_twice(index, run, other, kept, 2))
        called = {call.layer.parameter for one in (first, *more) for call in one.calls} - kept
        others = set().union(*(one.others for one in (first, *more)))
        if fill(index.parameters.keys() - (called - others)):
            continue
        odd = others | _too_small(first.calls) | set().union(*(_different(first.calls, one.calls) for one in more))
        odd &= called
        if not odd:
            break
        kept |= odd
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


@dataclass(frozen=True)
class Step:
    """A call of a layer. `group`: the one that is asked for; None: the last one's answer has it."""

    layer: LinearLayer
    rows: int
    group: int | None


def steps_of(groups: Sequence[LayerGroup], calls: Sequence[LayerCall]) -> tuple[Step, ...]:
    """What these calls ask for. Each layer of an answer is used once: what is asked for twice would else depend on
    whether two contents are equal. Errors: DelegationError for a layer that no group has."""
    steps: list[Step] = []
    answered: set[LinearLayer] = set()
    reads = -1
    for call in calls:
        number = None
        if call.reads != reads or call.layer not in answered:
            number = group_with(groups, call.layer)
            answered, reads = set(groups[number].layers), call.reads
        answered.remove(call.layer)
        steps.append(Step(call.layer, call.rows, number))
    return tuple(steps)


def sequence_of(steps: Sequence[Step]) -> GroupCalls:
    """What a server sees of these steps."""
    return tuple((step.group, step.rows) for step in steps if step.group is not None)


def group_with(groups: Sequence[LayerGroup], layer: LinearLayer) -> int:
    """The group that a call of this layer asks for. Errors: DelegationError."""
    for number, group in enumerate(groups):
        if layer == group.layers[0]:
            return number
    for number, group in enumerate(groups):
        if layer in group.layers:
            return number
    raise DelegationError(f"{layer.parameter}: is called otherwise than when the model was prepared; prepare it again")


# Layers that a client computes by itself, where it has memory to spare: fewer rounds and fewer bytes.
#
# A call of a group is a round, whatever its size. So the groups go first that take the least memory for a round; of
# equals, those that send the most for it. Of a Transformer block these are the attention's output, and then its
# queries, keys and values. Server and dealer see fewer calls, and nothing else changes for them.


_UNITS = {"kB": 1e3, "MB": 1e6, "GB": 1e9}
_FORM = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})")


def read_memory(text: str) -> float:
    """Bytes; an empty text is none. Errors: DelegationError."""
    match = _FORM.fullmatch(text.strip())
    if match is None and text:
        raise DelegationError(f"client memory {text!r}: is no size; give one such as 200MB or 1.5GB")
    return float(match[1]) * _UNITS[match[2]] if match else 0.0


def groups_within(
    memory: float, groups: Sequence[LayerGroup], sequence: GroupCalls, parameters: Mapping[str, Tensor]
) -> list[int]:
    """The groups that a client with so many bytes computes. `sequence`: of a usual pass.

    Errors: DelegationError where nothing would be left to others.
    """
    calls = Counter(group for group, _ in sequence)
    names = [{layer.parameter for layer in group.layers} for group in groups]
    sizes = [sum(parameters[name].nbytes for name in some) for some in names]

    def order(number: int) -> tuple[float, float]:
        group = groups[number]
        return sizes[number] / calls[number], -(group.inputs + 2 * group.outputs) / sizes[number]

    chosen: list[int] = []
    counted: set[str] = set()
    for number in sorted(calls, key=order):
        more = sum(parameters[name].nbytes for name in names[number] - counted)
        if more <= memory:
            memory -= more
            counted |= names[number]
            chosen.append(number)
    if len(chosen) == len(calls):
        raise DelegationError("client memory: has room for the whole model; compute it where the text is, or give less")
    return chosen


def check_weights(matrix: Tensor, integers: Tensor, scale: Tensor) -> None:
    """Whether weights [outputs, inputs] are those that were rounded to these integers: only these are in the manifest.

    Errors: DelegationError.
    """
    for rows, whole, unit in zip(*(one.split(1024) for one in (matrix, integers, scale)), strict=True):
        if not bool(((rows - whole * unit[:, None]).abs() <= unit[:, None]).all()):
            raise DelegationError("weights: are not those of the manifest; prepare the model again")
