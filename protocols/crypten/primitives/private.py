"""Products of a shared value with one that a party knows in the clear: one message to that party, one plain product.

X is shared among N parties, W known to party k. A is the sum of masks A_j of all parties but k.
    The others know D = W - B, uniform because B is: of the model's weights once per model, of a data owner's values
    once per query. The dealer, who knows A and B, shares A B = C_0 + ... + C_{N-1}.
    Each other party sends X_j - A_j to k. Party k: Z_k = (X - A) W + C_k. Party j: Z_j = A_j D + C_j.
    The sum of all Z is (X - A) W + A (W - B) + A B = X W.
Party k sees X - A, uniform unless all others help it; they see D alone. For a weight, Z_j exists before the query does.
One A serves every product of X with values of party k. For N = 2 this is protocols/beaver/private.py.
By a weight that all parties know in the clear, each multiplies its share.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...beaver import lookup
from ...beaver.context import Public
from ...beaver.primitive import Opening, Primitive, size
from ...beaver.values import OfflineValue, Shape, Share, mask_bytes, of_shape
from ...errors import CorrelationError
from ...ring import Ring
from ...rounds import Step, Swap, together
from ...wire import wire_bytes
from ..context import Moved, NPartyCost, NPartyOffline, NPartyOnline, Owned, but

Product = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class KnownProduct:
    """The product of the others' mask and the mask of what a party knows."""

    others: Tensor
    known: Tensor
    product: Product

    def value(self) -> Tensor:
        return self.product(self.others, self.known)


class ByKnownValue(Primitive):
    """x, shared, times a value that one party knows. `ahead`, `now`: the product before a query and in it."""

    def ahead(self, ring: Ring) -> Product:
        return _times

    def now(self, ring: Ring, width: int) -> Product:
        return _times

    def correlate(
        self, offline: NPartyOffline, key: str, shape: Shape, width: int, x: OfflineValue, value: Owned | Public
    ) -> OfflineValue:
        if isinstance(value, Public):
            return OfflineValue(key, shape, width)
        a, b, product = offline.others(x, value.rank), _mask(offline, value), self.ahead(offline.ring)
        share = offline.source.derived(key, shape, KnownProduct(a, b, product), mask_bytes(width))
        if value.masked is not None:
            share = product(a, value.masked) + share  # all of this party's result
        offline.keep(key, share)
        return OfflineValue(key, shape, width)

    def run(self, online: NPartyOnline, key: str, width: int, x: Share, value: Owned | Public) -> Step:
        product = self.now(online.ring, width)
        if isinstance(value, Public):
            return Share(key, product(x.tensor, value.tensor), width)
        if value.owner == "server":
            a = yield from online.others(x, value.rank)
        else:
            a, _ = yield from together(online.others(x, value.rank), _send_masked(online, value))
        share = online.tape.share(key)
        if online.rank == value.rank:
            assert value.tensor is not None
            share = product(a, value.tensor).add_(share)
        elif value.owner != "server":
            assert value.masked is not None
            share = product(a, value.masked).add_(share)
        return Share(key, share, width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, value: Owned | Public) -> NPartyCost:
        """x - A is gathered at the owner, unless it is there; a data owner's D is spread, unless it was."""
        if isinstance(value, Public):
            return NPartyCost()
        gathered = 0 if but(value.rank) in x.one_sided else wire_bytes(x.width) * size(x.shape)
        known = value.owner == "server" or value.mask is not None
        spread = 0 if known else wire_bytes(value.width) * size(value.shape)
        moved = Moved(gathered=gathered, spread=spread, one=value.rank)
        return NPartyCost((moved,) if gathered or spread else (), mask_bytes(width) * size(shape))

    def opens(self, x: OfflineValue, value: Owned | Public) -> list[Opening]:
        if isinstance(value, Public):
            return []
        gathered = (x.key, but(value.rank))
        return [gathered] if value.owner == "server" else [gathered, (value.key, "private")]


class LinearToAll(ByKnownValue):
    """x @ W, x shared [..., K], W the leader's [K, N]; or [..., n, K] by [..., K, N], broadcasting."""

    op = "linear"

    def ahead(self, ring: Ring) -> Product:
        return ring.matmul

    def now(self, ring: Ring, width: int) -> Product:
        return lambda x, weight: ring.linear(x, weight, width)


class MultiplyPrivateToAll(ByKnownValue):
    """Elementwise x * v with broadcasting, x shared, v known to one party."""

    op = "mul_private"


def _times(x: Tensor, y: Tensor) -> Tensor:
    return x * y


def _mask(offline: NPartyOffline, value: Owned) -> Tensor:
    """B of a data owner's value: drawn by the owner and the dealer. The parties never look at B of a weight."""
    if value.mask is None and value.owner == "server":
        if offline.role == "dealer":
            raise CorrelationError(f"dealer: weight {value.key} was not set up; run the set-up of the model first")
        return torch.empty(0)
    if value.mask is None:
        label = f"{value.key}/private"
        value.mask = offline.masks.known(label, value.shape, value.rank)
        if offline.masks.rank == value.rank:
            offline.keep(label, value.mask)
    return value.mask


def _send_masked(online: NPartyOnline, value: Owned) -> Step:
    """D of a data owner's value, from the owner to everybody else: once, whatever number of products reads it."""
    while value.pending and not value.opened:
        yield []
    if value.opened:
        return
    value.pending = True
    if online.rank == value.rank:
        mask = online.tape.share(f"{value.key}/private")
        assert value.tensor is not None
        yield [Swap(value.tensor - of_shape(value.tensor, mask), None, wire_bytes(value.width))]
    else:
        (value.masked,) = yield [Swap(None, value.shape, wire_bytes(value.width), peer=value.rank)]
    value.opened = True


# Tables among N parties: the dealer's numbers themselves. The keys that spare them are two parties'
# (protocols/beaver/point_function.py).


class LookupByNumbers(lookup.Lookup):
    op = "lookup"
    keyed = False
