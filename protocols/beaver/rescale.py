"""Exact rescale: divide by 2^s with one opening, never wrong by more than one unit.

With |z| < 2^(w-2), the dealer shares r (uniform), low = -(r >> s) and wrap = msb(r) * 2^(w-s). The parties open
c = z + 2^(w-2) + r. Then z >> s = (c >> s) - 2^(w-2-s) + low + [msb(c) = 0] * wrap, plus a carry of 0 or 1: since z +
2^(w-2) is below 2^(w-1), the sum passes 2^w exactly when r has its top bit and c has not. The carry is 1 with a
probability equal to the fraction dropped: rounding is stochastic and unbiased. The result stays open (values.py), so
what reads it opens nothing.

Each party sees c, uniform because r is; its share of the result is a share of masks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..kernels import twins
from ..kernels.library import kernel
from ..ring import logical_shift, shift_left_, top_bit
from ..rounds import Step, Swap
from ..wire import wire_bytes
from .context import Offline, Online
from .primitive import Cost, Primitive, size
from .values import Mask, MaskTerm, Opened, Shape, Share, Trace, mask_bytes


@dataclass(frozen=True)
class RescaleCorrelation:
    r: Tensor
    terms: tuple[MaskTerm, ...]  # low, and wrap where it matters


class Rescale(Primitive):
    op = "rescale"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: Trace, bits: int, ring: int = 64
    ) -> Trace:
        source, zeros = offline.source, ring - bits
        r = source.uniform(f"{key}/r", shape, wire_bytes(ring))
        low = source.derived(f"{key}/low", shape, lambda: -logical_shift(r, bits, ring), mask_bytes(width))
        terms = [MaskTerm(low)]
        if width > zeros:  # else the wrap is beyond the bits that matter
            size = mask_bytes(width, zeros)
            wrap = source.derived(f"{key}/wrap", shape, lambda: top_bit(r, ring), size)
            terms.append(MaskTerm(shift_left_(wrap, zeros), zeros))
        offline.keep(key, RescaleCorrelation(r, tuple(terms)))
        return Trace(key, shape, width, mask=Mask(tuple(terms), "scaled"))

    def run(self, online: Online, key: str, width: int, x: Share, bits: int, ring: int = 64) -> Step:
        correlation = online.tape.take(key, RescaleCorrelation)
        mine = x.tensor + correlation.r
        if online.leader:
            mine += 1 << (ring - 2)
        (theirs,) = yield [Swap(mine, x.shape, wire_bytes(ring))]
        low, *wrap = correlation.terms
        place = (bits, ring, online.leader)
        public, wrapped, share = rescaled(mine, theirs, low.value, wrap[0].value if wrap else None, *place)
        coefficients = (None, wrapped) if wrap else (None,)
        return Share(key, share, width, opened=Opened(public, coefficients, correlation.terms, "scaled"))

    def cost(self, shape: Shape, width: int, x: Trace, bits: int, ring: int = 64) -> Cost:
        opening = size(shape) * wire_bytes(ring)
        return Cost(((opening, opening),), size(shape) * (mask_bytes(width) + mask_bytes(width, ring - bits)))


@kernel(twins.rescaled)
def rescaled(
    mine: Tensor, theirs: Tensor, low: Tensor, wrap: Tensor | None, bits: int, ring: int, leader: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """The public part, whether the wrap counts, and the share of the result."""
    opened = mine + theirs
    public = logical_shift(opened, bits, ring).sub_(1 << (ring - 2 - bits))
    wrapped, share = None, low.clone()
    if wrap is not None:
        wrapped = 1 - top_bit(opened, ring)
        share.addcmul_(wrapped, wrap)
    return public, wrapped, share.add_(public) if leader else share
