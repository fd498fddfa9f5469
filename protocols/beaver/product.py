"""Products of shared values (Beaver 1991) on openings that other instructions may already have paid for.

With x = X + sum_t g_t M_t and y = Y + sum_u h_u N_u (values.py):
    x y = X Y + X n + Y m + sum_{t,u} g_t h_u [M_t N_u],   m, n the whole masks.
The dealer shares the products M_t N_u. Where their low zero bits reach 64 together they vanish in the ring and are
not made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from ..kernels import bindings
from ..kernels.library import kernel
from ..ring import shift_left_, signed
from ..rounds import Step, together
from .context import Offline, Online
from .primitive import (
    Cost,
    Opening,
    Primitive,
    mask_terms,
    matrix_opening_cost,
    matrix_openings,
    opening_cost,
    plain_openings,
    ring_opening_cost,
    size,
)
from .recipes import MaskMatrixProduct, MaskProduct
from .values import MaskTerm, OfflineValue, Shape, Share, mask_bytes, sum_products


def term_pairs(x: tuple[MaskTerm, ...], y: tuple[MaskTerm, ...], width: int) -> list[tuple[int, int]]:
    """The pairs of mask terms whose product is not zero in the low `width` bits; of a square each but once."""
    pairs = [(t, u) for t, a in enumerate(x) for u, b in enumerate(y) if a.zeros + b.zeros < width]
    return [(t, u) for t, u in pairs if t <= u or x is not y]


class Multiply(Primitive):
    """Elementwise product with broadcasting, shared by shared."""

    op = "mul"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, y: OfflineValue
    ) -> OfflineValue:
        a, b = offline.mask(x), offline.mask(y)
        entries = []
        for t, u in term_pairs(a.terms, b.terms, width):
            left, right = a.terms[t], b.terms[u]
            entries.append(_product(offline, f"{key}/{t}.{u}", shape, width, left, right))
        offline.keep(key, entries)
        return OfflineValue(key, shape, width)

    def run(self, online: Online, key: str, width: int, x: Share, y: Share) -> Step:
        if x is y:
            a = b = yield from online.opened(x)
        else:
            a, b = yield from together(online.opened(x), online.opened(y))
        products = online.tape.take(key, list)
        left = b.mask()
        if online.leader:
            left = left + b.public
        rest = {
            (t, u): shift_left_(product.long(), a.terms[t].zeros + b.terms[u].zeros)
            for (t, u), product in zip(term_pairs(a.terms, b.terms, width), products, strict=True)
        }
        if a.terms is b.terms:
            rest |= {(u, t): product for (t, u), product in rest.items()}
        terms = [(b.public, a.mask()), (a.public, left)]
        for t in range(len(a.terms)):
            inner = [(b.coefficients[u], rest[t, u]) for u in range(len(b.terms)) if (t, u) in rest]
            if inner:
                terms.append((a.coefficients[t], sum_products(*inner)))
        result = sum_products(*terms)
        return Share(key, result, width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, y: OfflineValue) -> Cost:
        pairs = term_pairs(mask_terms(x), mask_terms(y), width)
        zeros = [mask_terms(x)[t].zeros + mask_terms(y)[u].zeros for t, u in pairs]
        return Cost(opening_cost(x, y), size(shape) * sum(mask_bytes(width, z) for z in zeros))

    def opens(self, x: OfflineValue, y: OfflineValue) -> list[Opening]:
        return plain_openings(x, y, but=("scaled", "bit"))


def _product(offline: Offline, label: str, shape: Shape, width: int, a: MaskTerm, b: MaskTerm) -> Tensor:
    recipe = MaskProduct(a, b)
    return offline.source.derived(label, shape, recipe, mask_bytes(width, recipe.zeros))


class MatrixProduct(Primitive):
    """Batched x @ y, shared by shared, on plain or unwrapped openings: z = X (Y + b) + a Y + [a b] at the leader."""

    op = "matmul"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, y: OfflineValue
    ) -> OfflineValue:
        a, b = offline.matrix_mask(x), offline.matrix_mask(y)
        recipe = MaskMatrixProduct(a, b, offline.ring)
        offline.keep(key, offline.source.derived(key, shape, recipe, mask_bytes(width)))
        return OfflineValue(key, shape, width)

    def run(self, online: Online, key: str, width: int, x: Share, y: Share) -> Step:
        (left, a), (right, b) = yield from together(online.matrix_opened(x), online.matrix_opened(y))
        product = online.tape.share(key)
        matmul = online.ring.matmul
        result = matmul(left, b + right if online.leader else b).add_(product)
        return Share(key, result.add_(matmul(a, right)), width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, y: OfflineValue) -> Cost:
        macs = 2 * size(shape) * x.shape[-1]
        return Cost(matrix_opening_cost(x, y), mask_bytes(width) * size(shape), macs)

    def opens(self, x: OfflineValue, y: OfflineValue) -> list[Opening]:
        return matrix_openings(x, y)


class Polynomial(Primitive):
    """sum_k c_k x^k with public integers c_k, on one opening whatever the degree.

    x^k = sum_j binomial(k, j) X^(k-j) m^j, so the dealer shares the powers m^j of the mask. Under a scaled opening m
    is low, or low + wrap: both powers are shared, the second as a difference of which only few bits matter.
    """

    op = "polynomial"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, coefficients: list[int]
    ) -> OfflineValue:
        _share_powers(offline, x, len(coefficients) - 1)
        return OfflineValue(key, shape, width)

    def run(self, online: Online, key: str, width: int, x: Share, coefficients: list[int]) -> Step:
        opened = yield from online.ring_opened(x)
        chosen: list[Tensor | None] = [opened.mask()]
        for power, difference in _taken_powers(online, x, opened.terms[-1].zeros, len(coefficients) - 1):
            wrapped = opened.coefficients[-1]
            chosen.append(power if difference is None else sum_products((None, power), (wrapped, difference)))
        degree = len(coefficients) - 1
        series = [[signed(c * comb(k, j)) for k, c in enumerate(coefficients)][j:] + [0] * j for j in range(degree + 1)]
        powers = [None, *chosen] if online.leader else chosen
        result = sum_series(opened.public, series if online.leader else series[1:], powers)
        return Share(key, result, width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, coefficients: list[int]) -> Cost:
        terms = mask_terms(x) if x.mask and x.mask.kind == "scaled" else ()
        each = mask_bytes(x.width) + (mask_bytes(x.width, terms[1].zeros) if len(terms) > 1 else 0)
        missing = len(coefficients) - 2 - len(x.powers)
        return Cost(ring_opening_cost(x), size(shape) * each * max(0, missing))

    def opens(self, x: OfflineValue, coefficients: list[int]) -> list[Opening]:
        return plain_openings(x, but=("scaled",))


def _share_powers(offline: Offline, x: OfflineValue, degree: int) -> None:
    """Share the mask's powers up to `degree`; those that an earlier polynomial of x asked for are there already."""
    low, *wraps = offline.ring_mask(x).terms
    for power in range(2 + len(x.powers), degree + 1):
        label = f"{x.key}/power/{power}"
        first = offline.source.derived(label, x.shape, Power(low, power), mask_bytes(x.width))
        second = None
        for wrap in wraps:
            recipe, size = WrappedPower(low, wrap, power), mask_bytes(x.width, wrap.zeros)
            second = offline.source.derived(f"{label}/wrap", x.shape, recipe, size)
        offline.keep(label, (first, second))
        x.powers.append((first, second))


def _taken_powers(online: Online, x: Share, zeros: int, degree: int) -> list[tuple[Tensor, Tensor | None]]:
    for power in range(2 + len(x.powers), degree + 1):
        first, second = online.tape.take(f"{x.key}/power/{power}", tuple)
        x.powers.append((first.long(), None if second is None else shift_left_(second.long(), zeros)))
    return x.powers[: max(0, degree - 1)]


def _power(x: Tensor, exponent: int) -> Tensor:
    out = x
    for _ in range(exponent - 1):
        out = out * x
    return out


@dataclass(frozen=True)
class Power:
    low: MaskTerm
    exponent: int

    def value(self) -> Tensor:
        return _power(self.low.value, self.exponent)


@dataclass(frozen=True)
class WrappedPower:
    """How much a power is more with the wrap, without its low zero bits."""

    low: MaskTerm
    wrap: MaskTerm
    exponent: int

    def value(self) -> Tensor:
        low = self.low.value
        return (_power(low + self.wrap.value, self.exponent) - _power(low, self.exponent)) >> self.wrap.zeros


@kernel(bindings.sum_series)
def sum_series(x: Tensor, series: Sequence[Sequence[int]], powers: Sequence[Tensor | None]) -> Tensor:
    """sum_j (sum_k series[j][k] x^k) powers[j]; a power None is 1."""
    total = torch.zeros_like(x)
    for row, power in zip(series, powers, strict=True):
        value = torch.full_like(x, row[-1])
        for c in row[-2::-1]:
            value = value.mul_(x).add_(c)
        total = total.add_(value) if power is None else total.addcmul_(value, power)
    return total
