"""The price of a Program among N parties: declared costs, with the openings that instructions share counted once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..beaver.engine import PricingEngine, openings_of
from ..beaver.primitive import Primitive
from ..beaver.values import Shape
from ..ring import Ring
from .context import but
from .costs import ManyCost, among_all
from .engine import ManyOfflineEngine, Owners
from .source import ManyCount


class ManyPricingEngine(PricingEngine, ManyOfflineEngine):
    """Prices a Program among N parties; `prices` by instruction, whatever N. As beaver's for the rest."""

    def __init__(self, ring: Ring, weights: Mapping[str, Tensor], owners: Owners | None = None) -> None:
        ManyOfflineEngine.__init__(self, ManyCount(), ring, weights, owners)
        self.costs, self.opened, self.under_way = {}, set(), set()
        self.prices: dict[str, ManyCost] = {}

    def price(
        self, primitive: Primitive, key: str, shape: Shape, width: int, args: list[Any], attributes: dict[str, Any]
    ) -> None:
        super().price(primitive, key, shape, width, args, attributes)
        cost = self.costs[key]
        self.prices[key] = cost if isinstance(cost, ManyCost) else among_all(cost)

    def openings(self, op: str, args: list[Any]) -> list[tuple[str, str]]:
        if op not in ("linear", "mul_private"):
            return openings_of(op, args)
        x, private = args
        found = [(x.key, but(private.rank))]
        return found if private.owner == "server" else [*found, (private.key, "private")]
