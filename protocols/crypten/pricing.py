"""The price of a Program among N parties: declared costs, with the openings that instructions share counted once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ..beaver.engine import Prepared, PricingEngine
from ..beaver.primitive import Primitive
from ..beaver.values import Shape
from ..operations.operation import Attributes
from ..ring import Ring
from ..states import KeptStates
from .costs import ManyCost, among_all
from .engine import ManyOfflineEngine, Owners
from .source import ManyCount


class ManyPricingEngine(PricingEngine, ManyOfflineEngine):
    """Prices a Program among N parties; `prices` by instruction, whatever N. As beaver's for the rest."""

    def __init__(
        self, ring: Ring, weights: Mapping[str, Tensor], owners: Owners | None = None, states: KeptStates | None = None
    ) -> None:
        ManyOfflineEngine.__init__(self, ManyCount(), ring, weights, owners, states)
        self.costs, self.opened, self.under_way = {}, set(), set()
        self.prices: dict[str, ManyCost] = {}

    def price(
        self, primitive: Primitive, key: str, shape: Shape, width: int, args: Sequence[Prepared], attributes: Attributes
    ) -> None:
        super().price(primitive, key, shape, width, args, attributes)
        cost = self.costs[key]
        self.prices[key] = cost if isinstance(cost, ManyCost) else among_all(cost)
