"""Exact rescale: divide by 2^s with one opening, never wrong by more than one unit.

With |z| < 2^(w-2), the dealer shares r (uniform), low = -(r >> s) and wrap = msb(r) * 2^(w-s). The parties open
c = z + 2^(w-2) + r. Then z >> s = (c >> s) - 2^(w-2-s) + low + [msb(c) = 0] * wrap, plus a carry of 0 or 1: since z + 2^(w-2) is
below 2^(w-1), the sum passes 2^w exactly when r has its top bit and c has not. The carry is 1 with a probability equal to the fraction
dropped: rounding is stochastic and unbiased. The result stays open (values.py), so what reads it opens nothing.

Each party sees c, uniform because r is; its share of the result is a share of masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..ring import logical_shift, top_bit
from ..rounds import Swap
from .context import Offline, Online
from .primitive import Cost, Primitive, Steps, size
from .values import Mask, MaskTerm, Opened, Shape, Share, Trace, mask_bytes


@dataclass(frozen=True)
class RescaleCorrelation:
    r: Tensor
    low: Tensor
    wrap: Tensor


class Rescale(Primitive):
    op = "rescale"

    def correlate(self, offline: Offline, key: str, shape: Shape, *args: Any, **attributes: Any) -> Trace:
        bits, width = attributes["bits"], attributes.get("width", 64)
        source, zeros = offline.source, width - bits
        r = source.uniform(f"{key}/r", shape)
        low = source.derived(f"{key}/low", shape, lambda: -logical_shift(r, bits, width))
        wrap = source.derived(f"{key}/wrap", shape, lambda: top_bit(r, width), mask_bytes(zeros)) << zeros
        offline.keep(key, RescaleCorrelation(r, low, wrap))
        return Trace(key, shape, mask=Mask((MaskTerm(low), MaskTerm(wrap, zeros)), "scaled"))

    def run(self, online: Online, key: str, *args: Any, **attributes: Any) -> Steps:
        x: Share = args[0]
        bits, width = attributes["bits"], attributes.get("width", 64)
        correlation = online.tape.take(key)
        assert isinstance(correlation, RescaleCorrelation)
        mine = x.tensor + correlation.r
        if online.leader:
            mine += 1 << (width - 2)
        (theirs,) = yield [Swap(mine, x.shape, (width + 7) // 8)]
        opened = mine.add_(theirs)
        wrapped = 1 - top_bit(opened, width)
        public = logical_shift(opened, bits, width).sub_(1 << (width - 2 - bits))
        share = correlation.low + wrapped * correlation.wrap
        if online.leader:
            share += public
        terms = (MaskTerm(correlation.low), MaskTerm(correlation.wrap, width - bits))
        return Share(key, share, opened=Opened(public, (None, wrapped), terms, "scaled"))

    def cost(self, shape: Shape, *args: Any, **attributes: Any) -> Cost:
        bits, width = attributes["bits"], attributes.get("width", 64)
        count = size(shape)
        opening = count * ((width + 7) // 8)
        return Cost(((opening, opening),), count * (8 + mask_bytes(width - bits)))
