"""Correlated randomness among N parties and a dealer: one description, as in protocols/beaver/source.py, N + 1 roles.

Party 0 (the leader) has the seat of beaver's server: the dealer sends it the corrections. Each other one has the seat
of beaver's client: all it holds is key stream of its own seed. Shares of a value v are s_1 ... s_{N-1}, key streams,
and v - s_1 - ... - s_{N-1} at the leader; without the dealer, any N - 1 of them are uniform.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add, xor
from typing import Protocol

import torch
from torch import Tensor

from ..beaver.source import (
    ClientSource,
    Corrections,
    CountingSource,
    PartyMasks,
    Recipe,
    ServerSource,
    Shape,
    Source,
)
from ..streams import Stream


class NPartySource(Source, Protocol):
    """A source among N parties: it can name who knows a mask."""

    @property
    def rank(self) -> int | None:
        """None: the dealer, or a count."""
        ...

    def known(self, label: str, shape: Shape, owner: int) -> Tensor:
        """A uniform value known to party `owner` (and the dealer); the others get zeros."""
        ...

    def others(self, label: str, shape: Shape, owner: int) -> Tensor:
        """A uniform value of which each party but `owner` knows its own share; the owner gets zeros."""
        ...


class _OfParty(PartyMasks):
    rank: int

    def known(self, label: str, shape: Shape, owner: int) -> Tensor:
        return self.drawn_if(owner == self.rank, label, shape)

    def others(self, label: str, shape: Shape, owner: int) -> Tensor:
        return self.drawn_if(owner != self.rank, label, shape)


class LeaderSource(_OfParty, ServerSource):
    """Party 0: uniform values from its seed, derived ones from the dealer's corrections."""

    rank = 0


class PartySource(_OfParty, ClientSource):
    """A party but the first: everything from its own seed."""

    def __init__(self, stream: Stream, rank: int) -> None:
        super().__init__(stream)
        self.rank = rank


class NPartyDealer:
    """The dealer's side: values in the clear, of masks only. `streams`: one a party, in order."""

    role, narrow, evaluates = "dealer", False, True
    rank = None

    def __init__(self, streams: Sequence[Stream], corrections: Corrections) -> None:
        self.streams, self.corrections, self.device = streams, corrections, streams[0].device

    def uniform(self, label: str, shape: Shape, width: int = 8) -> Tensor:
        return reduce(add, self._shares(label, shape, width))

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.known(label, shape, int(owner))

    def known(self, label: str, shape: Shape, owner: int) -> Tensor:
        return self.streams[owner].integers(label, shape)

    def others(self, label: str, shape: Shape, owner: int) -> Tensor:
        return reduce(add, (s.integers(label, shape) for rank, s in enumerate(self.streams) if rank != owner))

    def derived(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        out = recipe.value()
        self.corrections.write(reduce(torch.sub, self._shares(label, shape, width)[1:], out), width)
        return out

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return reduce(xor, self._shares(label, shape))

    def derived_bits(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        out = recipe.value()
        self.corrections.write(reduce(xor, self._shares(label, shape, width)[1:], out), width)
        return out

    def _shares(self, label: str, shape: Shape, width: int = 8) -> list[Tensor]:
        return [stream.integers(label, shape, width) for stream in self.streams]


class NPartyCount(CountingSource):
    """Counts the corrections' bytes, on tensors without storage."""

    rank = None

    def known(self, label: str, shape: Shape, owner: int) -> Tensor:
        return self.uniform(label, shape)

    def others(self, label: str, shape: Shape, owner: int) -> Tensor:
        return self.uniform(label, shape)
