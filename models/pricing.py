"""What a program costs, before running it: bytes, rounds, multiply-accumulates, and seconds on a given network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch

from ..protocols.beaver.engine import OfflineEngine, PricingEngine
from ..protocols.beaver.source import CountingSource
from ..protocols.ring import Ring
from .interpreter import interpret
from .program import Program, check_offers


@dataclass(frozen=True)
class Network:
    """`rtt`: seconds there and back. `bandwidth`: bits a second, each way."""

    name: str
    rtt: float
    bandwidth: float


NETWORKS = {
    "loopback": Network("loopback", 0.00006, 8e9),
    "lan": Network("lan", 0.0005, 1e9),
    "wan": Network("wan", 0.04, 1e8),
}


@dataclass
class PriceRow:
    """One module's share of the price. Bytes: `down` server to client, `up` back, `offline` dealer to server."""

    path: str
    down: int = 0
    up: int = 0
    offline: int = 0
    rounds: int = 0
    macs: int = 0
    operations: dict[str, int] = field(default_factory=dict)


@dataclass
class Price:
    """Totals, equal to what a run meters; `rows` by module. A module's rounds overlap others', so they do not add
    up."""

    rounds: int
    down: int
    up: int
    offline_bytes: int
    macs: int
    setup_bytes: int
    rows: list[PriceRow]
    layout: tuple[int, ...] = field(default=(), repr=False)  # bytes of each of the dealer's corrections, in order

    @property
    def online_bytes(self) -> int:
        return self.down + self.up


def price(program: Program) -> Price:
    """Price a program on the beaver protocol."""
    return _price(program.hash(), _Holder(program))


class _Holder:
    """Hides the program from lru_cache's key: the hash stands for it."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __hash__(self) -> int:
        return 0

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Holder)


@lru_cache(maxsize=16)
def _price(_: str, holder: _Holder) -> Price:
    from ..protocols.base import find

    program = holder.program
    check_offers(program, find("beaver"))
    weights = {n: torch.empty(s, dtype=torch.int64, device="meta") for n, s in program.weight_shapes().items()}
    engine = PricingEngine(Ring(program.ring), weights)
    execution = interpret(program, engine, lambda swaps: [None] * len(swaps))
    rows: dict[str, PriceRow] = {}
    for number, item in enumerate(program.instructions):
        row = rows.setdefault(item.path, PriceRow(item.path))
        cost = engine.costs.get(str(number))
        if cost is None:
            continue
        row.macs += cost.macs
        row.down += cost.down
        row.up += cost.up
        row.offline += cost.offline
        row.rounds += cost.rounds
        row.operations[item.op] = row.operations.get(item.op, 0) + 1
    listed = [row for row in rows.values() if row.operations]
    return Price(
        rounds=execution.rounds,
        down=sum(r.down for r in listed),
        up=sum(r.up for r in listed),
        offline_bytes=sum(r.offline for r in listed),
        macs=sum(r.macs for r in listed),
        setup_bytes=sum(8 * math.prod(s) for s in program.weight_shapes().values()),
        rows=listed,
        layout=_layout(program, weights),
    )


def _layout(program: Program, weights: dict[str, torch.Tensor]) -> tuple[int, ...]:
    """In the order of the offline phase, which waits for no round (the pricing walk follows the rounds)."""
    source = CountingSource()
    interpret(program, OfflineEngine(source, Ring(program.ring), weights))
    return tuple(source.layout)
