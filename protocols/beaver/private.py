"""Products of a shared value with one that a party knows in the clear: one message, one plain product.

Weight-stationary (server-private W). Once per model the client gets D = W - B, uniform because B is. Per query:
    A is the client's mask of X; the dealer shares A B = C0 + C1.
    The client sends E = X1 - A. Server: Z0 = (X0 + E) W + C0. Client, ahead of time: Z1 = A D + C1.
    Z0 + Z1 = (X - A) W + A (W - B) + A B = X W.
The server sees X - A, uniform because A is. W never travels again. One A serves every product that reads the same X.

A weight that all parties know in the clear (an open one) needs none of this: each multiplies its share by it.

The mirror image (client-private m, such as the padding mask): the server's share goes to the client under the
server's mask A, the client sends m - B once per query, and the dealer shares A B.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..errors import CorrelationError
from ..ring import Ring
from ..rounds import Step, Swap, together
from ..wire import wire_bytes
from .context import Offline, Online, PrivateValue, Public
from .primitive import Cost, Opening, Primitive, size
from .recipes import PrivateProduct
from .values import OfflineValue, Shape, Share, mask_bytes, of_shape

Product = Callable[..., Tensor]  # of a share or a mask, and what this party knows of the private value


class Linear(Primitive):
    """x @ W, x shared [..., K], W server-private [K, N]; or [..., n, K] by [..., K, N], broadcasting."""

    op = "linear"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, weight: PrivateValue | Public
    ) -> OfflineValue:
        if isinstance(weight, Public):
            return OfflineValue(key, shape, width)
        return _stationary(offline, key, shape, width, x, weight, offline.ring)

    def run(self, online: Online, key: str, width: int, x: Share, weight: PrivateValue | Public) -> Step:
        product = lambda a, w: online.ring.linear(a, w, width)  # noqa: E731
        if isinstance(weight, Public):
            # What may travel of the client's share is the same at every level of processor: an audit compares it.
            right = width if online.leader else 8 * wire_bytes(width)
            return Share(key, online.ring.linear(x.tensor, weight.tensor, right), width)
        return (yield from _run_stationary(online, key, width, x, weight, product))

    def cost(self, shape: Shape, width: int, x: OfflineValue, weight: PrivateValue | Public) -> Cost:
        macs = size(shape) * x.shape[-1]
        return Cost(macs=macs) if isinstance(weight, Public) else _half_cost(shape, width, x, "client", macs)

    def opens(self, x: OfflineValue, weight: PrivateValue | Public) -> list[Opening]:
        return [] if isinstance(weight, Public) else [(x.key, "half of the client")]


class MultiplyPrivate(Primitive):
    """Elementwise x * v with broadcasting, x shared, v known to one party."""

    op = "mul_private"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, v: PrivateValue
    ) -> OfflineValue:
        if v.owner == "server":
            return _stationary(offline, key, shape, width, x, v)
        a, b = offline.one_sided(x, "server"), _client_mask(offline, v)
        offline.keep(key, offline.source.derived(key, shape, PrivateProduct(b, a), mask_bytes(width)))
        return OfflineValue(key, shape, width)

    def run(self, online: Online, key: str, width: int, x: Share, v: PrivateValue) -> Step:
        if v.owner == "server":
            return (yield from _run_stationary(online, key, width, x, v, lambda a, b: a * b))
        left, right = yield from together(online.one_sided(x, "server"), _open_client_value(online, v))
        product = online.tape.share(key)
        return Share(key, left * right + product, width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, v: PrivateValue) -> Cost:
        if v.owner == "server":
            return _half_cost(shape, width, x, "client")
        down = 0 if "server" in x.one_sided else wire_bytes(x.width) * size(x.shape)
        up = 0 if v.opened else wire_bytes(v.width) * size(v.shape)
        return Cost(((down, up),) if down or up else (), mask_bytes(width) * size(shape))

    def opens(self, x: OfflineValue, v: PrivateValue) -> list[Opening]:
        if v.owner == "server":
            return [(x.key, "half of the client")]
        return [(x.key, "half of the server"), (v.key, "private")]


def _half_cost(shape: Shape, width: int, x: OfflineValue, owner: str, macs: int = 0) -> Cost:
    steps = () if owner in x.one_sided else ((0, wire_bytes(x.width) * size(x.shape)),)
    return Cost(steps, mask_bytes(width) * size(shape), macs)


def _stationary(
    offline: Offline,
    key: str,
    shape: Shape,
    width: int,
    x: OfflineValue,
    weight: PrivateValue,
    ring: Ring | None = None,
) -> OfflineValue:
    """`ring`: of a product of matrices."""
    a = offline.one_sided(x, "client")
    if weight.tensor is not None:  # at the server, in an audit: A D + C1 = A W - C0
        product = a * weight.tensor if ring is None else ring.linear(a, weight.tensor)
        offline.keep(key, product - offline.dealt[key])
        return OfflineValue(key, shape, width)
    if (offline.role == "dealer" and weight.mask is None) or (offline.role == "client" and weight.masked is None):
        raise CorrelationError(f"{offline.role}: weight {weight.key} was not set up; run the set-up of the model first")
    recipe = PrivateProduct(a, weight.mask, ring, weight.name, weight.shape)
    share = offline.source.derived(key, shape, recipe, mask_bytes(width))
    if weight.masked is not None:
        share = recipe.product(a, weight.masked) + share  # the client's whole result, before its query exists
    offline.keep(key, share)
    return OfflineValue(key, shape, width)


def _run_stationary(online: Online, key: str, width: int, x: Share, weight: PrivateValue, product: Product) -> Step:
    masked = yield from online.one_sided(x, "client")
    share = online.tape.share(key)
    if online.role == "server":
        share = product(masked, weight.tensor).add_(share)
    return Share(key, share, width)


def _client_mask(offline: Offline, v: PrivateValue) -> Tensor:
    if v.mask is None:
        label = f"{v.key}/private"
        v.mask = offline.source.private(label, v.shape, "client")
        if offline.role == "client":
            offline.keep(label, v.mask)
    v.opened = True
    return v.mask


def _open_client_value(online: Online, v: PrivateValue) -> Step:
    """The client's value under its own mask, to the server. Returns v at the client, v - B at the server."""
    while v.pending and not v.opened:
        yield []
    if not v.opened:
        v.pending = True
        if online.role == "client":
            mask = online.tape.share(f"{v.key}/private")
            assert v.tensor is not None
            yield [Swap(v.tensor - of_shape(v.tensor, mask), None, wire_bytes(v.width))]
        else:
            (v.masked,) = yield [Swap(None, v.shape, wire_bytes(v.width))]
        v.opened = True
    return v.tensor if online.role == "client" else v.masked
