"""Fourier series of a secret, on the opening that it has already: no message of their own.

x = c - rho modulo 2^k, with c public and rho the mask's low k bits (as in compare.py). 2^k units are p whole periods,
so with t = 2 pi p / 2^k

    cos n t x = cos n t c cos n t rho + sin n t c sin n t rho
    sin n t x = sin n t c cos n t rho - cos n t c sin n t rho

hold for every n, wraps included. The dealer shares cos n t rho and sin n t rho; the rest is public, and the sum is
linear in what is shared, so that each party computes its share alone.

What a party sees: c, uniform because x's mask is; and its shares of the dealer's numbers, fresh and uniform each time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CorrelationError
from ..kernels import bindings
from ..kernels.library import kernel
from ..operations.fourier import WAVE, rounded, turns
from ..rounds import Step
from .context import Offline, Online, Public
from .lookup import DealerNumbers, keep_numbers
from .primitive import Cost, Opening, Primitive, plain_openings, ring_opening_cost, size
from .values import OfflineValue, Shape, Share, mask_bytes


@dataclass(frozen=True)
class Waves:
    """cos n t rho and sin n t rho for n from 1 to `count`, [..., count, 2], rho minus a mask."""

    mask: Tensor
    bits: int
    periods: int
    count: int
    fraction: int

    def value(self) -> Tensor:
        angle = (-self.periods * self.mask & (1 << self.bits) - 1).double() * (2 * math.pi / (1 << self.bits))
        return waves(angle.cos(), angle.sin(), self.count, self.fraction)


class Fourier(Primitive):
    op = "fourier"

    def correlate(
        self,
        offline: Offline,
        key: str,
        shape: Shape,
        width: int,
        x: OfflineValue,
        *tables: Public,
        bits: int,
        fraction: int,
        periods: int = 1,
        slope: int | None = None,
    ) -> OfflineValue:
        mask, count = offline.ring_mask(x), len(tables[0].tensor) - 1
        if bits > x.width or any(term.zeros < bits for term in mask.terms[1:]):
            raise CorrelationError(f"series of {x.key}: its opening does not cover {bits} bits; this is a bug")
        recipe = Waves(mask.terms[0].value, bits, periods, count, fraction)
        offline.keep(key, keep_numbers(offline, key, (*x.shape, count, 2), recipe, mask_bytes(width)))
        return OfflineValue(key, shape, width)

    def run(
        self,
        online: Online,
        key: str,
        width: int,
        x: Share,
        table: Public,
        wave: Public,
        bits: int,
        fraction: int,
        periods: int = 1,
        slope: int | None = None,
    ) -> Step:
        opened = yield from online.ring_opened(x)
        numbers = online.tape.take(key, DealerNumbers).numbers
        first = int(table.tensor[0, 0]) << fraction if online.leader else 0
        point = opened.public * periods if periods > 1 else opened.public
        share = read_series(point, table.tensor, wave.tensor, numbers, bits, first, WAVE)
        return Share(key, share if slope is None else share.add_(x.tensor, alpha=1 << slope), width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, table: Public, *wave: Public, **more: int) -> Cost:
        numbers = size(shape) * 2 * (len(table.tensor) - 1)
        return Cost(ring_opening_cost(x), numbers * mask_bytes(width), numbers)

    def opens(self, x: OfflineValue, *tables: Public, **more: int) -> list[Opening]:
        return plain_openings(x, but=("scaled",))


@kernel(bindings.read_series)
def read_series(x: Tensor, table: Tensor, wave: Tensor, numbers: Tensor, bits: int, first: int, scale: int) -> Tensor:
    """`first`, and of the other rows of the table their cosines and sines at x, times the dealer's numbers. `scale`:
    bits of the wave."""
    total = torch.full_like(x, first)
    for n, (cosine, sine) in enumerate(turns(x, wave, bits, len(table) - 1)):
        a, b = table[n + 1]
        total += rounded(a * cosine + b * sine) * numbers[..., n, 0]
        total += rounded(a * sine - b * cosine) * numbers[..., n, 1]
    return total


@kernel(bindings.waves)
def waves(cosine: Tensor, sine: Tensor, count: int, fraction: int) -> Tensor:
    """cos and sin [..., count, 2] of 1 to `count` times an angle, with `fraction` bits; multiplied up, which errs by
    some 2^-50."""
    turned, now = cosine.new_empty(*cosine.shape, count, 2), (cosine, sine)
    for n in range(count):
        turned[..., n, 0], turned[..., n, 1] = now
        now = (cosine * now[0] - sine * now[1], sine * now[0] + cosine * now[1])
    return turned.mul_(2.0**fraction).round_().long()
