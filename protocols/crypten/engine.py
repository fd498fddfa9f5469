"""The engines of N parties: beaver's, with values owned by any party, and the primitives of primitives/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..beaver.context import RowsAdded
from ..beaver.engine import Held, OfflineEngine, OnlineEngine, Prepared, PricingEngine
from ..beaver.primitive import Primitive
from ..beaver.values import Shape, Tape
from ..devices import CPU
from ..operations import operations
from ..operations.operation import Attributes
from ..ring import Ring
from ..rounds import Step
from ..states import KeptStates
from .context import LEADER, NPartyCost, NPartyOffline, NPartyOnline, Owned, among_all
from .primitives import primitives
from .source import NPartyCount, NPartySource

Owners = Mapping[str, int]  # a data owner's rank, by the name of its value
FIRST_OWNER = 1  # of the data, where nothing else is said


class NPartyOfflineEngine(OfflineEngine):
    """Fills a party's tape (or, as the dealer, sends corrections) by walking the program once.

    `weights`: per weight, B at the dealer, D at every party but the leader. `owners`: who has which of the data.
    """

    def __init__(
        self,
        source: NPartySource,
        ring: Ring,
        weights: Mapping[str, Tensor],
        owners: Owners | None = None,
        states: KeptStates | None = None,
        runs: int = 1,
        keeps: Mapping[str, RowsAdded] | None = None,
    ) -> None:
        self.tape = Tape()
        self.offline = NPartyOffline(source, self.tape, ring, states, runs, keeps)
        self.weights, self.owners = weights, owners or {}
        self.operations, self.primitives = operations(), primitives()

    def prepare(
        self, key: str, op: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> Prepared:
        if op == "client":
            return Owned(key, "client", shape, width, rank=self.owners.get(attributes["name"], FIRST_OWNER))
        if op == "weight":
            known, role = self.weights.get(attributes["name"]), self.offline.role
            return Owned(
                key,
                "server",
                shape,
                width,
                masked=known if role == "client" else None,
                mask=known if role in ("dealer", "count") else None,
            )
        return super().prepare(key, op, shape, width, args, attributes)


class NPartyOnlineEngine(OnlineEngine):
    """One party's online phase. `values`: the party's own sources and its shares of inputs by name, encoded; `device`:
    where all of them are."""

    def __init__(
        self,
        rank: int,
        tape: Tape,
        ring: Ring,
        values: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        *,
        owners: Owners | None = None,
        recipient: int = FIRST_OWNER,
        states: KeptStates | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.online = self.many = NPartyOnline(rank, recipient, tape, ring, states, device)
        self.values, self.constants, self.owners = values, constants, owners or {}
        self.operations, self.primitives = operations(), primitives()

    def run(self, key: str, op: str, shape: Shape, width: int, args: Sequence[Held], attributes: Attributes) -> Step:
        if op in ("client", "weight"):
            name = attributes["name"]
            rank = LEADER if op == "weight" else self.owners.get(name, FIRST_OWNER)
            tensor = self.values[name] if rank == self.many.rank else None
            return Owned(key, "server" if op == "weight" else "client", shape, width, tensor=tensor, rank=rank)
        return (yield from super().run(key, op, shape, width, args, attributes))


# The price of a Program among N parties: declared costs, with the openings that instructions share counted once.


class NPartyPricingEngine(PricingEngine, NPartyOfflineEngine):
    """Prices a Program among N parties; `prices` by instruction, whatever N. As beaver's for the rest."""

    def __init__(
        self, ring: Ring, weights: Mapping[str, Tensor], owners: Owners | None = None, states: KeptStates | None = None
    ) -> None:
        NPartyOfflineEngine.__init__(self, NPartyCount(), ring, weights, owners, states)
        self.costs, self.opened, self.under_way = {}, set(), set()
        self.prices: dict[str, NPartyCost] = {}

    def price(
        self, primitive: Primitive, key: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> None:
        super().price(primitive, key, shape, width, args, attributes)
        cost = self.costs[key]
        self.prices[key] = cost if isinstance(cost, NPartyCost) else among_all(cost)
