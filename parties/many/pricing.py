"""What a query costs N parties, before anybody runs one: rounds and bytes, exact, from the declared costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...models.interpreter import interpret
from ...models.program import Program, check_offers
from ...protocols.crypten import PROTOCOL
from ...protocols.crypten.pricing import ManyPricingEngine
from ...protocols.ring import Ring
from .roster import Roster


@dataclass(frozen=True)
class ManyPrice:
    """One query. `sent`: each party's online bytes to all others together; `received`: likewise.

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


def price(program: Program, roster: Roster) -> ManyPrice:
    """Errors: RosterError, ProgramError."""
    check_offers(program, PROTOCOL)
    shapes = program.weight_shapes()
    weights = {name: torch.empty(shape, dtype=torch.int64, device="meta") for name, shape in shapes.items()}
    engine = ManyPricingEngine(Ring(program.ring), weights, roster.sources(program))
    rounds = interpret(program, engine, lambda swaps: [None] * len(swaps)).rounds
    steps = [step for cost in engine.prices.values() for step in cost.steps]
    to = roster.recipient_rank
    return ManyPrice(
        rounds,
        {name: sum(step.sent(rank, roster.size, to) for step in steps) for rank, name in enumerate(roster.names)},
        {name: sum(step.received(rank, roster.size, to) for step in steps) for rank, name in enumerate(roster.names)},
        sum(cost.offline for cost in engine.prices.values()),
        8 * (roster.size - 1) * sum(math.prod(shape) for shape in shapes.values()),
    )
