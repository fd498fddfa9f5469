"""Layers that a client computes by itself, where it has memory to spare: fewer rounds and fewer bytes.

A call of a group is a round, whatever its size. So the groups go first that take the least memory for a round; of
equals, those that send the most for it. Of a Transformer block these are the attention's output, and then its queries,
keys and values. Server and dealer see fewer calls, and nothing else changes for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from torch import Tensor

from .layers import LayerGroup
from .sequences import DelegationError, GroupCalls

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
