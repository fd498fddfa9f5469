"""Correlations that a party holds ahead, in memory: how much they take, and the most that others may make it hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...protocols.beaver.values import Tape
from ...protocols.errors import BlindformerError

GB = 1_000_000_000


class AheadError(BlindformerError):
    """More correlations are asked for than this party holds."""


@dataclass(frozen=True)
class AheadLimits:
    """`queries` at most, and `bytes` of them."""

    queries: int = 1000
    bytes: int = 4 * GB

    def check_count(self, held: int, more: int) -> None:
        """Errors: AheadError."""
        if held + more > self.queries:
            most = f"and at most {self.queries} are held (crypten.ahead)"
            raise AheadError(f"ahead: correlations of {held + more} queries are asked for, {most}; ask for fewer")

    def check_bytes(self, needed: int) -> None:
        """Errors: AheadError."""
        if needed > self.bytes:
            most = f"and at most {self.bytes / GB:.3g} GB are held (crypten.ahead_gb)"
            raise AheadError(f"ahead: the correlations asked for take {needed / GB:.3g} GB, {most}; ask for fewer")


def tape_bytes(tape: Tape) -> int:
    """Bytes of a tape's tensors, each counted once."""
    sizes = {id(found): found.numel() * found.element_size() for entry in tape.entries() for found in _tensors(entry)}
    return sum(sizes.values())


def _tensors(entry: Any) -> Iterable[Tensor]:
    if isinstance(entry, Tensor):
        yield entry
    elif isinstance(entry, list | tuple):
        for item in entry:
            yield from _tensors(item)
    elif hasattr(entry, "__dict__"):  # a correlation of several parts
        for item in vars(entry).values():
            yield from _tensors(item)
