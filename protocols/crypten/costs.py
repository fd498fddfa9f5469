"""What an instruction costs among N parties, as a formula: each round's bytes by who sends to whom.

    opened     b from each party to each other one: N (N - 1) b in all. Beaver's openings, b as declared there
    gathered   b from each party to one: (N - 1) b
    spread     b from one party to each other one: (N - 1) b

For two parties these are beaver's prices, but for the zero that comes with a result that is not rounded (reveal.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from ..beaver.primitive import Cost
from .context import LEADER

RECIPIENT = -1  # in place of a rank: who gets the results
OPENER = -2  # who opens them under a mask before: never the recipient


def opener_of(recipient: int) -> int:
    return LEADER if recipient != LEADER else LEADER + 1


@dataclass(frozen=True)
class Moved:
    """Bytes of one round. `one`: the rank that it is gathered at, and spread from."""

    opened: int = 0
    gathered: int = 0
    spread: int = 0
    one: int = LEADER

    def sent(self, rank: int, size: int, recipient: int) -> int:
        """By party `rank` of `size`, to all others together."""
        is_one = rank == self._rank(recipient)
        return (size - 1) * (self.opened + (self.spread if is_one else 0)) + (0 if is_one else self.gathered)

    def received(self, rank: int, size: int, recipient: int) -> int:
        """By party `rank` of `size`, from all others together."""
        is_one = rank == self._rank(recipient)
        return (size - 1) * (self.opened + (self.gathered if is_one else 0)) + (0 if is_one else self.spread)

    def _rank(self, recipient: int) -> int:
        return {RECIPIENT: recipient, OPENER: opener_of(recipient)}.get(self.one, self.one)


@dataclass(frozen=True)
class NPartyCost:
    """Declared price of one instruction. `offline`: bytes of corrections, dealer to leader, whatever N."""

    steps: tuple[Moved, ...] = ()
    offline: int = 0


def among_all(cost: Cost) -> NPartyCost:
    """Of one of beaver's openings, which send as much one way as the other."""
    return NPartyCost(tuple(Moved(opened=down) for down, _ in cost.steps), cost.offline)
