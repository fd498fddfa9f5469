"""The two phases of a query among N parties: beaver's, and masks that all parties but one know their shares of."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..beaver.context import Offline, Online, PrivateValue
from ..beaver.primitive import Cost
from ..beaver.values import OfflineValue, Share, Tape, of_shape
from ..devices import CPU
from ..ring import Ring
from ..rounds import Swap
from ..states import KeptStates
from ..wire import wire_bytes
from .source import NPartySource

LEADER = 0


@dataclass(eq=False)
class Owned(PrivateValue):
    """A value that party `rank` knows in the clear. `masked`: it, minus its mask B, at each of the others."""

    rank: int = LEADER


class NPartyOffline(Offline):
    """The offline phase of one party, or of the dealer; its source is a `NPartySource`."""

    @property
    def masks(self) -> NPartySource:
        return cast(NPartySource, self.source)

    def others(self, x: OfflineValue, owner: int) -> Tensor:
        """The mask under which x goes to `owner`: A, of which each other party knows its share."""
        name = but(owner)
        if name not in x.one_sided:
            x.one_sided[name] = self.masks.others(f"{x.key}/{name}", x.shape, owner)
            if self.masks.rank != owner:
                self.keep(f"{x.key}/{name}", x.one_sided[name])
        return x.one_sided[name]


class NPartyOnline(Online):
    """The online phase of one party. `recipient`: the party that results are revealed to."""

    def __init__(
        self,
        rank: int,
        recipient: int,
        tape: Tape,
        ring: Ring,
        states: KeptStates | None = None,
        device: torch.device = CPU,
    ) -> None:
        super().__init__(role(rank), tape, ring, states, device=device)
        self.rank, self.recipient = rank, recipient

    def others(self, x: Share, owner: int) -> Generator[list[Swap], list[Any], Tensor]:
        """x goes to `owner` under the mask A of the others. Returns x - A there, this party's share of A elsewhere."""
        name = but(owner)
        while name not in x.one_sided and name in x.pending:
            yield []
        if name not in x.one_sided:
            x.pending.add(name)
            if self.rank == owner:
                (theirs,) = yield [Swap(None, x.shape, wire_bytes(x.width), kept=x.tensor)]
                x.one_sided[name] = x.tensor + theirs
            else:
                mask = self.tape.share(f"{x.key}/{name}")
                yield [Swap(x.tensor - of_shape(x.tensor, mask), None, wire_bytes(x.width), peer=owner)]
                x.one_sided[name] = mask
        return x.one_sided[name]


def role(rank: int) -> str:
    """The seat of a party in beaver's primitives: the leader adds public numbers, and gets the corrections."""
    return "server" if rank == LEADER else "client"


def but(owner: int) -> str:
    """The kind of opening in which a value goes to `owner` alone."""
    return f"all but {owner}"


# What an instruction costs among N parties, as a formula: each round's bytes by who sends to whom.
#
#     opened     b from each party to each other one: N (N - 1) b in all. Beaver's openings, b as declared there
#     gathered   b from each party to one: (N - 1) b
#     spread     b from one party to each other one: (N - 1) b
#
# For two parties these are beaver's prices, but for the zero that comes with a result that is not rounded (reveal.py).


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
