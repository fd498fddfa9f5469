"""A primitive: its correlation, its online steps and its price, side by side.

To add one, add a file with a subclass of `Primitive`; the registry finds it by scanning this folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch

from ..rounds import Step
from ..scanning import modules
from ..wire import elements as size
from ..wire import wire_bytes
from .context import Offline, Online
from .values import MaskTerm, OfflineValue, Shape, mask_bytes

Opening = tuple[str, str]  # of a value, by its key: in which way


@dataclass(frozen=True)
class Cost:
    """Declared price of one instruction.

    `steps`: per round, bytes from the server to the client and back. `offline`: bytes of corrections, dealer to server.
    `passed_on`: bytes of these that the server passes on to the client, ahead of the query. `macs`: integer
    multiply-accumulates of the busier party online.
    """

    steps: tuple[tuple[int, int], ...] = ()
    offline: int = 0
    macs: int = 0
    passed_on: int = 0

    @property
    def rounds(self) -> int:
        return len(self.steps)

    @property
    def down(self) -> int:
        """Bytes from the server to the client."""
        return sum(step[0] for step in self.steps)

    @property
    def up(self) -> int:
        """Bytes from the client to the server."""
        return sum(step[1] for step in self.steps)


class Primitive:
    """One interactive operation. `key` names the instruction; all correlations are filed under it.

    `width`: the low bits of the result that matter. An argument is right to at least as many. Arguments come one by
    one (shared values as traces or shares, others as they are), then attributes by name.
    """

    op: ClassVar[str]

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, *args: Any, **attributes: Any
    ) -> OfflineValue:
        """Make the correlation; return the result's offline value. Runs at the dealer, the server, the client."""
        raise NotImplementedError

    def run(self, online: Online, key: str, width: int, *args: Any, **attributes: Any) -> Step:
        """The online steps of one party; returns its share of the result."""
        raise NotImplementedError

    def cost(self, shape: Shape, width: int, *args: Any, **attributes: Any) -> Cost:
        """The price, as a formula of the shapes and of what is open already. Called before `correlate`."""
        raise NotImplementedError

    def opens(self, *args: Any, **attributes: Any) -> Iterable[Opening]:
        """What it opens of its arguments, unless others have: in the first of the rounds that `cost` declares."""
        return ()


def opening_cost(*values: OfflineValue, plain: bool = False) -> tuple[tuple[int, int], ...]:
    """Bytes of opening those of `values` that are not open yet, both ways at once."""
    closed = {id(v): v for v in values if (v.plain is None if plain else v.mask is None and v.plain is None)}
    bytes_ = sum(size(v.shape) * wire_bytes(v.width) for v in closed.values())
    return ((bytes_, bytes_),) if bytes_ else ()


def ring_opening_cost(x: OfflineValue) -> tuple[tuple[int, int], ...]:
    """Bytes of the opening that powers and comparisons read: bits are opened once more, as ring elements."""
    return opening_cost(x, plain=x.mask is not None and x.mask.kind == "bit")


def plain_openings(*values: OfflineValue, but: tuple[str, ...] = ()) -> list[Opening]:
    """The plain openings of values, but of those that are open in a way that does, too."""
    return [(x.key, "plain") for x in values if not x.opens_at_creation and (x.mask is None or x.mask.kind not in but)]


def matrix_opening_cost(*values: OfflineValue) -> tuple[tuple[int, int], ...]:
    """Bytes of the openings that a product of matrices reads: of what is open scaled, its wraps."""
    plain = opening_cost(*(x for x in values if not _is_scaled(x)), plain=True)
    closed = {id(x): x for x in values if _is_scaled(x) and x.unwrapped is None}.values()
    bytes_ = sum(size(x.shape) * mask_bytes(x.width, mask_terms(x)[1].zeros) for x in closed)
    bytes_ += sum(down for down, _ in plain)
    return ((bytes_, bytes_),) if bytes_ else ()


def matrix_openings(*values: OfflineValue) -> list[Opening]:
    """The same openings."""
    scaled = [(x.key, "unwrapped") for x in values if _is_scaled(x)]
    return [*plain_openings(*(x for x in values if not _is_scaled(x))), *scaled]


def mask_terms(x: OfflineValue) -> tuple[MaskTerm, ...]:
    """The terms x has, or will have once opened plainly (for prices)."""
    return x.mask.terms if x.mask else (MaskTerm(torch.empty(0)),)


def _is_scaled(x: OfflineValue) -> bool:
    return x.mask is not None and x.mask.kind == "scaled"


@cache
def primitives(package: str = __name__.rsplit(".", 1)[0]) -> Mapping[str, Primitive]:
    """All primitives of a folder by operation."""
    by_operation: dict[str, Primitive] = {}
    for module in modules(package):
        for item in vars(module).values():
            if not (isinstance(item, type) and issubclass(item, Primitive) and "op" in vars(item)):
                continue
            if type(by_operation.setdefault(item.op, item())) is not item:
                raise RuntimeError(f"operation {item.op}: has two primitives in {package}; keep one")
    return by_operation
