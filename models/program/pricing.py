"""What a program costs, before running it: bytes, rounds, multiply-accumulates, and seconds on a given network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ...protocols.base import find
from ...protocols.beaver.engine import PricingEngine
from ...protocols.beaver.primitive import Cost
from ...protocols.crypten.engine import ManyPricingEngine, Owners
from ...protocols.ring import Ring
from ...protocols.rounds import Swap
from .correlations import ByHash, placeholders
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
    """What a module costs, or an operation. Bytes: `down` server to client, `up` back, `offline` dealer to server."""

    path: str
    down: int = 0
    up: int = 0
    offline: int = 0
    rounds: int = 0
    macs: int = 0
    operations: dict[str, int] = field(default_factory=dict)

    def add(self, operation: str, cost: Cost) -> None:
        self.macs += cost.macs
        self.down += cost.down
        self.up += cost.up
        self.offline += cost.offline
        self.rounds += cost.rounds
        self.operations[operation] = self.operations.get(operation, 0) + 1


@dataclass
class Price:
    """Totals, equal to what a run meters; `rows` by module, `by_operation` by operation. A row's rounds overlap
    others', so they do not add up."""

    rounds: int
    down: int
    up: int
    offline_bytes: int
    macs: int
    setup_bytes: int
    rows: list[PriceRow]
    by_operation: list[PriceRow]

    @property
    def online_bytes(self) -> int:
        return self.down + self.up


@dataclass(frozen=True)
class PriceAmong:
    """One query among N parties. `sent`: each party's online bytes to all others together; `received`: likewise.

    `offline_bytes`: from the dealer to the first party, whatever N. `setup_bytes`: once, of the first party to all
    others: the masked weights.
    """

    rounds: int
    sent: dict[str, int]
    received: dict[str, int]
    offline_bytes: int
    setup_bytes: int

    @property
    def online_bytes(self) -> int:
        """Of all parties, each message counted once."""
        return sum(self.sent.values())


def price(program: Program) -> Price:
    """Price a program on the beaver protocol. Errors: ProgramError."""
    return _price(ByHash(program))


def price_among(program: Program, names: Sequence[str], owners: Owners, recipient: int) -> PriceAmong:
    """Price a program among the parties `names`, in order of rank, on the crypten protocol. `owners`: a data owner's
    rank, by the name of its value; `recipient`: the rank of the party that gets the answers. Errors: ProgramError."""
    check_offers(program, find("crypten"))
    engine = ManyPricingEngine(Ring(program.ring), placeholders(program), owners)
    rounds = interpret(program, engine, _no_bytes).rounds
    steps = [step for cost in engine.prices.values() for step in cost.steps]
    size = len(names)
    return PriceAmong(
        rounds=rounds,
        sent={name: sum(step.sent(rank, size, recipient) for step in steps) for rank, name in enumerate(names)},
        received={name: sum(step.received(rank, size, recipient) for step in steps) for rank, name in enumerate(names)},
        offline_bytes=sum(cost.offline for cost in engine.prices.values()),
        setup_bytes=(size - 1) * _setup_bytes(program),
    )


@lru_cache(maxsize=16)
def _price(key: ByHash) -> Price:
    program = key.program
    check_offers(program, find("beaver"))
    engine = PricingEngine(Ring(program.ring), placeholders(program))
    execution = interpret(program, engine, _no_bytes)
    rows: dict[str, PriceRow] = {}
    operations: dict[str, PriceRow] = {}
    for number, item in enumerate(program.instructions):
        row = rows.setdefault(item.path, PriceRow(item.path))
        cost = engine.costs.get(str(number))
        if cost is not None:
            row.add(item.op, cost)
            operations.setdefault(item.op, PriceRow(item.op)).add(item.op, cost)
    listed = [row for row in rows.values() if row.operations]
    return Price(
        rounds=execution.rounds,
        down=sum(r.down for r in listed),
        up=sum(r.up for r in listed),
        offline_bytes=sum(r.offline for r in listed),
        macs=sum(r.macs for r in listed),
        setup_bytes=_setup_bytes(program),
        rows=listed,
        by_operation=sorted(operations.values(), key=lambda row: row.down + row.up + row.offline, reverse=True),
    )


def _no_bytes(swaps: list[Swap]) -> list[None]:
    """The wire of a walk that only counts rounds: bytes are declared."""
    return [None] * len(swaps)


def _setup_bytes(program: Program) -> int:
    """Of the masked weights, to one party."""
    return sum(8 * math.prod(shape) for shape in program.weight_shapes().values())
