"""The reference protocol: the same fixed point, no secrets, one process. Every other protocol is tested against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .base import ProtocolInfo
from .devices import META
from .operations import operations
from .operations.operation import RESULT, SOURCE, Attributes
from .ring import sign_extend
from .rounds import Step
from .states import KeptStates, RunStates

PROTOCOL = ProtocolInfo(
    "clear",
    parties="one process",
    security="none: the reference that other protocols are compared with",
    exact=True,
    list_operations=operations,
)


class ClearEngine:
    """Runs instructions on plain integers of the ring. `values`: encoded tensors of all sources by name.

    It computes what parties compute, wraps included: a rescale sees its argument modulo its ring, a comparison modulo
    its bits, and an answer is read modulo its width. Parties leave to chance the carry of a rescale, which
    rounds to nearest here; that of a place in a table, for which tables allow, and which is never taken here; and a
    rescale's argument that is out of range, which is left to chance here, too.

    `states`: of the session that this run belongs to.
    """

    def __init__(self, values: Mapping[str, Tensor], states: KeptStates | None = None) -> None:
        self.values, self.operations = values, operations()
        self.states = RunStates(states or KeptStates())
        self._chance = torch.Generator().manual_seed(0)  # hides nothing, so it is no mask

    def execute(
        self, key: str, op: str, shape: tuple[int, ...], width: int, args: Sequence[Tensor], attributes: Attributes
    ) -> Step:
        if op == "state":
            return self.states.read(shape=shape, **attributes)
        value = self.compute(op, args, attributes, width)
        if op == "keep":
            self.states.keep(attributes["name"], value, whole=attributes.get("whole", False))
        return value
        yield []  # a generator without swaps

    def compute(self, op: str, args: Sequence[Tensor], attributes: Attributes, width: int = 64) -> Tensor:
        """`width`: the low bits that the instruction promises; those above are whatever comes."""
        operation = self.operations[op]
        if operation.kind == SOURCE:
            return self.values[attributes["name"]]
        more = {"chance": self._drawn} if operation.by_chance else {}
        value = operation.compute(*args, **attributes, **more)
        return sign_extend(value, width) if operation.kind == RESULT else value

    def _drawn(self, top: int, like: Tensor) -> Tensor:
        return torch.randint(top, like.shape, generator=self._chance).to(like.device)


class ShapesEngine(ClearEngine):
    """Runs instructions on the shapes of their values alone. What one gives is remembered for those that are like it:
    layers are alike."""

    def __init__(self, sources: Mapping[str, tuple[int, ...]]) -> None:
        values = {name: torch.empty(shape, dtype=torch.int64, device="meta") for name, shape in sources.items()}
        super().__init__(values, KeptStates(META))
        self._known: dict[str, Tensor] = {}

    def compute(self, op: str, args: Sequence[Tensor], attributes: Attributes, width: int = 64) -> Tensor:
        alike = repr((op, [tuple(x.shape) for x in args], attributes))
        if alike not in self._known:
            self._known[alike] = super().compute(op, args, attributes, width)
        return self._known[alike]
