"""Divide by 2^s, never wrong by a whole unit; a message only where the result needs more bits than are left.

Of z modulo 2^w each party divides its share and rounds it. What the shares add up to passes 2^w by some multiple of it,
and divided that is a multiple of 2^(w-s): so the w - s bits left are right without a message, to the ceiling or the
floor of z / 2^s. The roundings do not depend on z, as each share alone is uniform, and their mean is 0: each is as
probable as z / 2^s is near it. (Local truncation as in SecureML, https://eprint.iacr.org/2017/396, whose rare large
error lies beyond the bits that are kept here. Among N parties the result is off by less than N / 2 units.)

If more bits are asked for, y = z / 2^s + 2^(k-2) is opened, k = w - s, which lies in [0, 2^(k-1)) for |z| < 2^(w-2).
The parties draw shares a_i of a mask, and open c = y + r, r being the low k bits of their sum. Then

    z / 2^s = c - 2^(k-2) - sum a_i + 2^k ([the sum's bits above k] + [msb(c) = 0] msb(r))

since y + r passes 2^k exactly when r has its top bit and c has not. The dealer shares both brackets' secrets. The
result stays open (values.py), so what reads it elementwise opens nothing.

Each party sees c, uniform because r is; its share of the result is a share of masks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..kernels import bindings
from ..kernels.library import kernel
from ..ring import logical_shift, shift_left_, top_bit
from ..rounds import Step, Swap
from ..wire import wire_bytes
from .context import Offline, Online
from .primitive import Cost, Primitive, size
from .values import Mask, MaskTerm, OfflineValue, Opened, Shape, Share, mask_bytes, of_shape


@dataclass(frozen=True)
class RescaleCorrelation:
    """`low`: minus r. `packed`: as they travelled, `low` the mask's bits above k, `wrap` r's top bit."""

    mine: Tensor  # a_i
    low: Tensor
    wrap: Tensor
    packed: bool = True

    def unpacked(self, left: int) -> RescaleCorrelation:
        if not self.packed:
            return self
        low = shift_left_(self.low.long(), left).sub_(self.mine)
        return RescaleCorrelation(self.mine, low, shift_left_(self.wrap.long(), left), packed=False)

    def terms(self, left: int) -> tuple[MaskTerm, MaskTerm]:
        """The masks of the result; packed ones only for their shapes."""
        return MaskTerm(self.low, bits=left), MaskTerm(self.wrap, left, bits=1)


@dataclass(frozen=True)
class BitsAbove:
    """Of a mask's sum the bits from `left` on."""

    mask: Tensor
    left: int

    def value(self) -> Tensor:
        return self.mask >> self.left


@dataclass(frozen=True)
class TopBit:
    """Of a mask's low `left` bits the top one."""

    mask: Tensor
    left: int

    def value(self) -> Tensor:
        return top_bit(self.mask, self.left)


class Rescale(Primitive):
    op = "rescale"

    def correlate(
        self,
        offline: Offline,
        key: str,
        shape: Shape,
        width: int,
        x: OfflineValue,
        bits: int,
        ring: int = 64,
        early: bool = False,
    ) -> OfflineValue:
        left = ring - bits
        result = OfflineValue(key, shape, width, opens_at_creation=early and width <= left)
        if width > left:
            mine, extra = offline.source.uniform(f"{key}/r", shape, wire_bytes(left)), mask_bytes(width, left)
            above = offline.source.derived(f"{key}/above", shape, BitsAbove(mine, left), extra)
            wrap = offline.source.derived(f"{key}/wrap", shape, TopBit(mine, left), extra)
            correlation = RescaleCorrelation(mine, above, wrap)
            if not offline.source.narrow and offline.role != "count":  # torch would import sympy for that
                correlation = correlation.unpacked(left)
            offline.keep(key, correlation)
            result.mask = Mask(correlation.terms(left), "scaled")
        elif early:
            offline.mask(result)
        return result

    def run(
        self, online: Online, key: str, width: int, x: Share, bits: int, ring: int = 64, early: bool = False
    ) -> Step:
        left = ring - bits
        mine = divided(x.tensor, bits, ring, online.leader) if bits else x.tensor
        if width <= left:
            result = Share(key, mine, width)
            if early:
                yield from online.opened(result)
            return result
        correlation = online.tape.take(key, RescaleCorrelation)
        mine = mine + of_shape(mine, correlation.mine)
        if online.leader:
            mine += 1 << (left - 2)
        (theirs,) = yield [Swap(mine, x.shape, wire_bytes(left))]
        low, wrap = correlation.unpacked(left).terms(left)
        public, wrapped, share = extended(mine, theirs, low.value, wrap.value, left, online.leader)
        return Share(key, share, width, opened=Opened(public, (None, wrapped), (low, wrap), "scaled"))

    def cost(self, shape: Shape, width: int, x: OfflineValue, bits: int, ring: int = 64, early: bool = False) -> Cost:
        left, count = ring - bits, size(shape)
        if width <= left and not early:
            return Cost()
        opening = count * wire_bytes(min(width, left))
        return Cost(((opening, opening),), 2 * count * mask_bytes(width, left))


@kernel(bindings.divided)
def divided(x: Tensor, bits: int, ring: int, leader: bool) -> Tensor:
    """This party's part of x / 2^bits: half a unit goes up at the leader, and down at the others."""
    half = 1 << (bits - 1)
    return logical_shift(x + half, bits, ring) if leader else logical_shift(half - x, bits, ring).neg_()


@kernel(bindings.extended)
def extended(
    mine: Tensor, theirs: Tensor, low: Tensor, wrap: Tensor, bits: int, leader: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Of what `bits` bits are opened: the public part, whether the wrap counts, and the share of the result."""
    opened = mine + theirs
    public = logical_shift(opened, 0, bits).sub_(1 << (bits - 2))
    wrapped = 1 - top_bit(opened, bits)
    share = low.addcmul(wrapped, wrap)
    return public, wrapped, share.add_(public) if leader else share
