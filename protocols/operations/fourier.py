"""A Fourier series of a secret: smooth functions on an interval, as sums of cosines and sines of a longer period.

2^bits units are `periods` whole periods, and x is a point of these. The table [N + 1, 2] has a row for each n from 0:
the coefficients of cos(2 pi n periods x / 2^bits) and of sin. Cosines are read from the wave, one period at `POINTS`
distances with `WAVE` bits, on the line between two points, and multiplied up from n = 1: whole numbers, so that all
parties find the same. Results have `fraction` bits more than the table. Parties have them with an error of a unit of
the table for each n, and of 2^-fraction for each coefficient. With `slope`, 2^slope x is added.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .operation import SHARED, Attributes, Bits, Operation

POINTS, WAVE = 1 << 14, 30
MOST = 52  # bits of a period, which the dealer's angles hold whole
_HALF = 1 << WAVE - 1


def turns(x: Tensor, wave: Tensor, bits: int, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """cos and sin of n times 2 pi x / 2^bits, for n = 1 to `count`, with `WAVE` bits."""
    cosine, sine = _read(x, wave, bits), _read(x - (1 << bits - 2), wave, bits)
    before, now = (torch.full_like(cosine, 1 << WAVE), torch.zeros_like(sine)), (cosine, sine)

    def following(n: int) -> Tensor:
        return (cosine * now[n] + _HALF // 2 >> WAVE - 1) - before[n]

    for _ in range(count):
        yield now
        before, now = now, (following(0), following(1))  # cos (n + 1) t = 2 cos t cos n t - cos (n - 1) t, sin alike


def _read(x: Tensor, wave: Tensor, bits: int) -> Tensor:
    x = x & (1 << bits) - 1
    fine = bits - int(math.log2(POINTS))
    if fine <= 0:
        return wave[x << -fine]
    point = x >> fine
    left = wave[point]
    return left + ((wave[point + 1] - left) * (x & (1 << fine) - 1) >> fine)


def rounded(total: Tensor) -> Tensor:
    """A sum of coefficients times cosines, without the cosines' bits."""
    return total + _HALF >> WAVE


def _fourier(
    x: Tensor, table: Tensor, wave: Tensor, bits: int, fraction: int, periods: int = 1, slope: int | None = None
) -> Tensor:
    total = torch.zeros_like(x) + table[0, 0]
    for (a, b), (cosine, sine) in zip(table[1:], turns(x * periods, wave, bits, len(table) - 1), strict=True):
        total += rounded(a * cosine + b * sine)
    return (total << fraction) + (0 if slope is None else x << slope)


def _on_reals(
    x: Tensor, table: Tensor, wave: Tensor, whole: float, periods: int = 1, domain: float = 0.0, slope: float = 0.0
) -> Tensor:
    """`whole`: of all periods, a power of two."""
    angle = x * (2 * math.pi * periods / whole)
    # Clenshaw's recurrence ("A note on the summation of Chebyshev series", 1955): two products a term.
    cosine, sine = angle.cos(), angle.sin()
    twice, total = 2 * cosine, torch.full_like(angle, float(table[0, 0]))
    for terms, first in zip(table[1:].T.tolist(), (cosine, sine), strict=True):
        now, after = torch.zeros_like(angle), torch.zeros_like(angle)
        for coefficient in reversed(terms):
            now, after = after.neg_().addcmul_(twice, now).add_(coefficient), now
        total.addcmul_(first, now)
        if first is cosine:
            total -= after
    return total.add_(x, alpha=slope) if slope else total


def _demand(bits: Bits, attributes: Attributes) -> int:
    bits.compares = attributes["bits"]
    return max(attributes["bits"], bits.width - attributes.get("slope", 64))


def _problem(attributes: Attributes) -> str:
    bits, fraction, periods = attributes.get("bits", 0), attributes.get("fraction", 0), attributes.get("periods", 1)
    slope = attributes.get("slope", 0)
    fits = all(type(n) is int for n in (bits, fraction, periods, slope)) and 2 <= bits <= MOST and 0 <= fraction < 50
    fits = fits and 0 <= slope < 62
    return "" if fits and 0 < periods < 1 << bits else "a Fourier series of a number of bits that no period has"


fourier = Operation(
    "fourier",
    SHARED,
    _fourier,
    _on_reals,
    shared=1,
    costly=True,
    opened=True,
    scales="fourier",
    check=_problem,
    demand=_demand,
)
