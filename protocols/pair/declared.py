"""What a program's corrections cost two parties: bytes by kind, and rounds, known before anything is sent.

A walk of the server's with transfers, products and messages that are all zeros: shapes alone say what travels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..beaver.source import Source
from ..homomorphic.lattice import PUBLIC_BYTES
from ..oblivious.silent import cost, setup_cost, words_of
from ..rounds import Swap
from ..streams import Stream, new_seed
from .crossed_products import CutProducts, KeptWeights
from .source import PairWire, make_corrections
from .steps import Pair
from .transfers import WORD, Crossed, TransferPool


@dataclass
class BothWays:
    """Payload in bytes."""

    to_client: int = 0
    to_server: int = 0

    def add(self, to_client: int, to_server: int) -> None:
        self.to_client += to_client
        self.to_server += to_server


@dataclass
class PairCost:
    """Of corrections. `traffic`: by kind; "weights": once a session. `rounds`: of the walks."""

    rounds: int = 0
    traffic: dict[str, BothWays] = field(default_factory=dict)

    def add(self, kind: str, to_client: int, to_server: int) -> None:
        self.traffic.setdefault(kind, BothWays()).add(to_client, to_server)

    @property
    def total(self) -> BothWays:
        total = BothWays()
        for one in self.traffic.values():
            total.add(one.to_client, one.to_server)
        return total


def setup_traffic() -> BothWays:
    """Of a session, once, without its weights."""
    one = setup_cost()
    both = one.from_receiver + one.from_sender
    return BothWays(both + PUBLIC_BYTES, both)


class SessionCosts:
    """Of a session's programs, in the order in which they are made: weights and transfers are left of one for the next.

    costs = SessionCosts()
    first, second = costs.of(walk), costs.of(walk)
    """

    def __init__(self) -> None:
        self.out = PairCost()
        self._pair = Pair(True, TransferPool(True, *(_DeclaredTransfers(self, sends) for sends in (True, False))))
        self._wire = PairWire(self._swaps, _DeclaredProducts(self, {}))

    def of(self, walk: Callable[[Source], object]) -> PairCost:
        """Of the next. `walk`: as of `make_corrections`, with any weights."""
        self.out = PairCost()
        self.out.rounds = make_corrections(self._pair, Stream(new_seed(), "count"), walk, self._wire)
        return self.out

    def _swaps(self, parts: list[Swap]) -> list[Tensor | None]:
        sizes = sum(part.send_bytes for part in parts), sum(part.expect_bytes for part in parts)
        self.out.add("shares", *sizes)
        return [None if part.expect is None else torch.zeros(part.expect, dtype=torch.int64) for part in parts]


@dataclass
class _DeclaredTransfers:
    """One direction's, at the server, which sends or receives them."""

    costs: SessionCosts
    sends: bool
    used: int = 0  # words

    def bits(self, count: int) -> tuple[Tensor, Tensor]:
        return self._counted(count, count // WORD, count // WORD)

    def numbers(self, count: int, width: int) -> tuple[Tensor, Tensor]:
        return self._counted(count, count if self.sends else count // WORD, count)

    def _counted(self, count: int, *sizes: int) -> tuple[Tensor, Tensor]:
        from_receiver, from_sender, _ = cost(count, self.used)
        self.used += words_of(count)
        both = (from_sender, from_receiver) if self.sends else (from_receiver, from_sender)
        self.costs.out.add("transfers", *both)
        first, second = (torch.zeros(size, dtype=torch.int64) for size in sizes)
        return first, second


@dataclass
class _DeclaredProducts:
    costs: SessionCosts
    kept: KeptWeights

    def cross(self, jobs: Sequence[Crossed]) -> list[Tensor]:
        cut = CutProducts(True, jobs, self.kept)
        for piece in cut.pieces():
            self.costs.out.add(piece.kind, piece.request_bytes, piece.reply_bytes)
        return cut.shares()
