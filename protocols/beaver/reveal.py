"""The result: opened to the client, or handed in two shares to an owner who takes no part in the protocol.

to the client   The server sends its share. The client learns the result, the server nothing.
to the owner    Each party keeps a share for the owner, who adds the two. The parties learn nothing.

A result is a product, with the fractional bits of one: three times as many as an answer needs, and these tell of the
weights. So it is divided by 2^bits first. The dealer shares r, uniform, and low = -(r >> bits). P1 sends its share of
z + r, and P0 alone opens c = z + r mod 2^ring. The answer is

    y = (c >> bits) + low    mod 2^(ring - bits)        floor or ceiling of z / 2^bits, right on average (rescale.py)

that is, P0's share is (c >> bits) + low_0, P1's low_1. Of its share P0 gives away the low ring - bits alone: whether c
has wrapped stands above them.

P0 sees c, uniform because r is. Whoever gets the answer sees (c >> bits) + low_0 = y - low_1, where low_1 is key stream
of P1 for nothing else: it can draw that itself, given y, so it learns y and no lower bit. Therefore c stays with P0:
c and y together tell r >> bits, hence z + (r mod 2^bits), a number with all bits of z.

A conversation's results are rows, one a token, and only those that the client asks for leave the server: the others of
P0's share stay with it.

Why a zero is added to an owner's shares where nothing is divided: shares of results are functions of opened values
and of masks. One alone looks uniform, but those of several results may come from the same masks, and together they
would tell the owner about intermediate values, hence about the weights. With a fresh sharing of zero, or of y as
above, the pair is a uniformly random sharing of the result: whoever knows the result can draw such a pair himself.
Shares of zero and of low are P1's key stream and a correction like all others: the dealer and both parties know them,
the owner does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..operations import OWNER
from ..operations.reveal import rows_of
from ..ring import logical_shift, sign_extend
from ..rounds import Step, Swap
from ..wire import wire_bytes
from .context import Offline, Online
from .primitive import Cost, Primitive, size
from .recipes import Zeros
from .values import OfflineValue, Shape, Share, mask_bytes, of_shape


@dataclass(frozen=True)
class Rounding:
    r: Tensor
    low: Tensor


@dataclass(frozen=True)
class Divided:
    """-(r >> bits), of r's low `ring` bits."""

    r: Tensor
    bits: int
    ring: int

    def value(self) -> Tensor:
        return -logical_shift(self.r, self.bits, self.ring)


class Reveal(Primitive):
    """Returns the result at the client and None at the server; to the owner, each party's share of it."""

    op = "reveal"

    def correlate(
        self,
        offline: Offline,
        key: str,
        shape: Shape,
        width: int,
        x: OfflineValue,
        to: str,
        bits: int = 0,
        ring: int = 64,
    ) -> OfflineValue:
        if bits:
            offline.keep(key, rounding(offline, key, shape, width, bits, ring))
        elif to == OWNER:
            offline.keep(key, zero(offline, key, shape, width))
        return OfflineValue(key, shape, width)

    def run(self, online: Online, key: str, width: int, x: Share, to: str, bits: int = 0, ring: int = 64) -> Step:
        share = x.tensor
        if bits:
            share = yield from rounded(online, key, x, online.leader, None, bits, ring)
        elif to == OWNER:
            share = share + of_shape(share, online.tape.share(key))
        share = rows_of(share, online.revealed)
        if to == OWNER:
            return share
        if online.leader:
            yield [Swap(share, None, wire_bytes(width))]
            return None
        (theirs,) = yield [Swap(None, tuple(share.shape), wire_bytes(width))]
        return sign_extend(share + theirs, width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, to: str, bits: int = 0, ring: int = 64) -> Cost:
        fresh, answer = mask_bytes(width) * size(shape), ((wire_bytes(width) * size(shape), 0),)
        opening = ((0, wire_bytes(ring) * size(shape)),) if bits else ()
        if to == OWNER:
            return Cost(opening, fresh)
        return Cost(opening + answer, fresh if opening else 0)


def zero(offline: Offline, key: str, shape: Shape, width: int) -> Tensor:
    """A fresh sharing of zero."""
    return offline.source.derived(f"{key}/zero", shape, Zeros(shape, offline.source.device), mask_bytes(width))


def rounding(offline: Offline, key: str, shape: Shape, width: int, bits: int, ring: int) -> Rounding:
    """What an answer is divided with."""
    r = offline.source.uniform(f"{key}/r", shape)
    low = offline.source.derived(f"{key}/low", shape, Divided(r, bits, ring), mask_bytes(width))
    return Rounding(r, low)


def rounded(online: Online, key: str, x: Share, opener: bool, peer: int | None, bits: int, ring: int) -> Step:
    """This party's fresh share of x / 2^bits. `opener`: whether it is the one that opens; `peer`: that one's rank."""
    correlation = online.tape.take(key, Rounding)
    mine = x.tensor + of_shape(x.tensor, correlation.r)
    if not opener:
        yield [Swap(mine, None, wire_bytes(ring), peer=peer)]
        return correlation.low.long()
    (theirs,) = yield [Swap(None, x.shape, wire_bytes(ring), kept=mine)]
    share = logical_shift(mine.add_(theirs), bits, ring).add_(correlation.low)
    return logical_shift(share, 0, ring - bits)
