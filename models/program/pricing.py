"""What a program costs, before running it: bytes, rounds, multiply-accumulates, and seconds on a given network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ...protocols.base import find
from ...protocols.beaver.engine import PricingEngine
from ...protocols.beaver.primitive import Cost
from ...protocols.crypten.engine import NPartyPricingEngine, Owners
from ...protocols.ring import Ring
from ...protocols.rounds import Swap
from .correlations import ByHash, placeholders
from .interpreter import interpret
from .program import Program, check_offers
from .two_server import audit_traffic


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


@dataclass(frozen=True)
class Layer:
    """The cost of one module, or of one operation. Bytes: both ways online; offline, as of QueryPrice."""

    path: str
    rounds: int
    online_bytes: int
    offline_bytes: int
    macs: int


@dataclass(kw_only=True)
class QueryPrice:
    """The declared cost of a query of a program, equal to what a run meters. Bytes are payload.

    up, down        online, to the server, and back
    dealt           from the dealer to the server, which passes `passed_on` of these on to the client; offline: both
    held            of what a party may hold of it: what is dealt, and the numbers that are made out of keys
    setup           paid once
    layers          by module, `operations` by operation: those that send something. A layer's rounds overlap others',
                    so they do not add up
    """

    rounds: int
    up: int
    down: int
    online_bytes: int
    dealt_bytes: int
    passed_on_bytes: int
    offline_bytes: int
    held_bytes: int
    setup_bytes: int
    macs: int
    layers: tuple[Layer, ...] = field(repr=False)
    operations: tuple[Layer, ...] = field(repr=False)


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


def price(program: Program) -> QueryPrice:
    """Price a program on the beaver protocol; the same object, which is not to be changed, for the same program.
    Errors: ProgramError if the protocol does not offer what the program needs."""
    return _price(ByHash(program))


def price_among(program: Program, names: Sequence[str], owners: Owners, recipient: int) -> PriceAmong:
    """Price a program among the parties `names`, in order of rank, on the crypten protocol. `owners`: a data owner's
    rank, by the name of its value; `recipient`: the rank of the party that gets the answers. Errors: ProgramError."""
    check_offers(program, find("crypten"))
    engine = NPartyPricingEngine(Ring(program.ring), placeholders(program), owners)
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


@lru_cache(maxsize=64)  # of all parts of a conversation, too
def _price(key: ByHash) -> QueryPrice:
    program = key.program
    check_offers(program, find("beaver"))
    engine = PricingEngine(Ring(program.ring), placeholders(program))
    execution = interpret(program, engine, _no_bytes)
    engine.offline.finish()
    costs = [engine.costs.get(str(number), Cost()) for number in range(len(program.instructions))]
    up, down = sum(cost.up for cost in costs), sum(cost.down for cost in costs)
    dealt, passed_on = sum(cost.offline for cost in costs), sum(cost.passed_on for cost in costs)
    audits = audit_traffic(program)
    up, down, dealt = up + audits.values, down + audits.answer, dealt + audits.audit_token
    operations = _layers([item.op for item in program.instructions], costs)
    return QueryPrice(
        rounds=execution.rounds + bool(program.audits),
        up=up,
        down=down,
        online_bytes=up + down,
        dealt_bytes=dealt,
        passed_on_bytes=passed_on,
        offline_bytes=dealt + passed_on,
        held_bytes=dealt + engine.grown,
        setup_bytes=_setup_bytes(program),
        macs=sum(cost.macs for cost in costs),
        layers=tuple(_layers([item.path or "(model)" for item in program.instructions], costs)),
        operations=tuple(sorted(operations, key=lambda row: row.online_bytes + row.offline_bytes, reverse=True)),
    )


def _layers(names: Sequence[str], costs: Sequence[Cost]) -> list[Layer]:
    """The instructions' costs added up by name, in order of the first; without names that send nothing."""
    by_name: dict[str, list[Cost]] = {name: [] for name in names}
    for name, cost in zip(names, costs, strict=True):
        by_name[name].append(cost)
    layers = [
        Layer(
            name,
            rounds=sum(cost.rounds for cost in own),
            online_bytes=sum(cost.down + cost.up for cost in own),
            offline_bytes=sum(cost.offline + cost.passed_on for cost in own),
            macs=sum(cost.macs for cost in own),
        )
        for name, own in by_name.items()
    ]
    return [layer for layer in layers if layer.online_bytes or layer.offline_bytes]


def _no_bytes(swaps: list[Swap]) -> list[None]:
    """The wire of a walk that only counts rounds: bytes are declared."""
    return [None] * len(swaps)


def _setup_bytes(program: Program) -> int:
    """Of the masked weights, to one party."""
    return sum(8 * math.prod(shape) for shape in program.weight_shapes().values())
