"""Exact comparison x < t with a public threshold t, on an opening that x may already have.

x = c - rho modulo 2^k with c public and rho the mask's low k bits, |x - t| < 2^(k-1), k at most the w - s bits of a
rescaled value. The answer is the sign, bit k-1 of (c - t) - rho: the exclusive or of the two top bits and of the borrow
below them. The borrow, [rho' > d'] on k-1 bits, is found on bit planes shared by exclusive or (bitslice.py):

  blocks   4 bits each. The dealer shares the products of every subset of a block's bits of rho, so that "greater" and
           "equal" of a block against the public d are linear: no messages. All thresholds of one x share these.
  tree     groups of blocks join by G = g3 ^ p3 g2 ^ p3 p2 g1 ^ p3 p2 p1 g0, P = p3 p2 p1 p0: one round per level of
           gates (gates.py; one for up to 5 blocks, k = 21).
  result   the sign bit becomes a number.

What a party sees: what gates and the number open, each masked by a bit of its own that only the dealer knows.

Legend: n elements, W words per plane, b = ceil((k - 1) / 4) blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..errors import CorrelationError
from ..kernels import bindings
from ..kernels.library import kernel
from ..rounds import Step, together
from .bitslice import add_constant, from_plane, planes_by_run, to_planes, words
from .context import Offline, Online
from .gates import (
    FAN_IN,
    LAST,
    BitMask,
    GateCorrelation,
    Level,
    Wires,
    as_number,
    bit_mask,
    gates,
    gates_price,
    number_price,
    offline_bits,
    through,
)
from .primitive import Cost, Opening, Primitive, plain_openings, ring_opening_cost, size
from .values import OfflineValue, Shape, Share

BLOCK = 4
SUBSETS = range(1, 1 << BLOCK)  # of a block's bits, as masks


@lru_cache
def tree(blocks: int) -> tuple[Level, ...]:
    """The levels that join `blocks` blocks into one borrow. Of block i wire 2 i is "greater", and 2 i + 1 "equal";
    outputs alternate likewise, and the root is "greater"."""
    levels = []
    while blocks > 1:
        root = blocks <= LAST
        groups = [range(i, min(i + FAN_IN, blocks)) for i in range(0, blocks, FAN_IN)] if not root else [range(blocks)]
        outputs: list[tuple[Wires, ...]] = []
        for number, group in enumerate(groups):
            high = list(reversed(group))
            outputs.append(tuple((*(2 * j + 1 for j in high[: high.index(i)]), 2 * i) for i in high))
            # Nothing lies below the lowest group, so its "equal" is never asked for.
            outputs.append((tuple(2 * j + 1 for j in high),) if number and not root else ())
        levels.append(Level(tuple(outputs[:1] if root else outputs)))
        blocks = len(groups)
    return tuple(levels)


@dataclass(frozen=True)
class BitCorrelation:
    """Bits of rho: shares of its blocks' products by subset [b, 16, W] (0: the constant one), of its top bit [W]."""

    blocks: Tensor
    top: Tensor


@dataclass(frozen=True)
class MaskBits:
    """The bits of rho, minus a mask, from `drop` to k."""

    mask: Tensor
    bits: int
    drop: int
    runs: int

    @cached_property
    def planes(self) -> Tensor:
        """[k - drop, W], made once for those that read it."""
        return planes_by_run(-self.mask, self.bits - self.drop, self.drop, self.runs)


@dataclass(frozen=True)
class BlockProducts:
    """The products of every non-empty subset of each block's bits of rho, below its top bit: [b, 15, W]."""

    rho: MaskBits

    def value(self) -> Tensor:
        grouped = in_blocks(self.rho.planes[:-1])
        products = torch.full_like(grouped[:, :1], -1)
        for i in range(BLOCK):
            products = torch.cat([products, products & grouped[:, i : i + 1]], dim=1)
        return products[:, 1:]


@dataclass(frozen=True)
class TopBits:
    rho: MaskBits

    def value(self) -> Tensor:
        return self.rho.planes[-1]


@dataclass(frozen=True)
class SignCorrelation:
    """Of one result: for each threshold the gates of each level, and the masks of the bits."""

    levels: list[list[GateCorrelation]]
    mask: BitMask


class Less(Primitive):
    """x < threshold, elementwise, as a shared 0/1 (scale 0). `bits`: k. `drop`: of c, rho and t alike, the lowest bits
    are not read."""

    op = "less"

    def correlate(
        self,
        offline: Offline,
        key: str,
        shape: Shape,
        width: int,
        x: OfflineValue,
        threshold: int,
        bits: int,
        drop: int = 0,
    ) -> OfflineValue:
        return _correlate(offline, key, shape, width, x, bits, drop, labels=[key])

    def run(self, online: Online, key: str, width: int, x: Share, threshold: int, bits: int, drop: int = 0) -> Step:
        (below,), mask = yield from _below(online, key, x, [threshold], bits, drop)
        return (yield from as_number(online, key, x.shape, width, below, mask))

    def cost(self, shape: Shape, width: int, x: OfflineValue, threshold: int, bits: int, drop: int = 0) -> Cost:
        return _cost(shape, width, x, bits, drop, thresholds=1)

    def opens(self, x: OfflineValue, threshold: int, bits: int, drop: int = 0) -> list[Opening]:
        return plain_openings(x, but=("scaled",))


class Sides(Primitive):
    """low <= x < high, and x >= high, side by side: the first is the exclusive or of two comparisons, and so a bit
    under one mask, as the second is."""

    op = "sides"

    def correlate(
        self,
        offline: Offline,
        key: str,
        shape: Shape,
        width: int,
        x: OfflineValue,
        low: int,
        high: int,
        bits: int,
        drop: int = 0,
    ) -> OfflineValue:
        return _correlate(offline, key, shape, width, x, bits, drop, labels=[f"{key}/low", f"{key}/high"])

    def run(
        self, online: Online, key: str, width: int, x: Share, low: int, high: int, bits: int, drop: int = 0
    ) -> Step:
        (below_low, below_high), mask = yield from _below(online, key, x, [low, high], bits, drop)
        above = ~below_high if online.leader else below_high
        planes = (from_plane(plane, x.tensor.numel()).view(x.shape) for plane in (below_low ^ below_high, above))
        sides = torch.cat(list(planes), -1)
        return (yield from as_number(online, key, tuple(sides.shape), width, to_planes(sides, 1)[0], mask))

    def cost(self, shape: Shape, width: int, x: OfflineValue, low: int, high: int, bits: int, drop: int = 0) -> Cost:
        return _cost(shape, width, x, bits, drop, thresholds=2)

    def opens(self, x: OfflineValue, low: int, high: int, **read: int) -> list[Opening]:
        return plain_openings(x, but=("scaled",))


def _correlate(
    offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, bits: int, drop: int, labels: list[str]
) -> OfflineValue:
    """`labels`: one for each threshold."""
    _bits_of_mask(offline, x, bits, drop)
    levels = [gates(offline, label, tree(_blocks(bits - drop)), size(x.shape)) for label in labels]
    mask = bit_mask(offline, key, shape, width)
    offline.keep(key, SignCorrelation(levels, mask))
    return offline_bits(key, shape, width, mask)


def _below(online: Online, key: str, x: Share, thresholds: list[int], bits: int, drop: int) -> Step:
    """For each threshold whether x is below it, as this party's plane [W]; and the mask of the result."""
    opened = yield from online.ring_opened(x)
    store, correlation = _taken_bits(online, x, bits, drop), online.tape.take(key, SignCorrelation)
    planes, levels = _public_planes(x, opened.public, bits, drop), tree(_blocks(bits - drop))
    compared = [compare_blocks(planes, -(threshold >> drop), store.blocks) for threshold in thresholds]
    joined = yield from together(
        *(
            through(online, levels, wires, correlations)
            for (wires, _), correlations in zip(compared, correlation.levels, strict=True)
        )
    )
    signs = [borrow[0] ^ store.top for borrow in joined]
    if online.leader:
        signs = [sign ^ top for sign, (_, top) in zip(signs, compared, strict=True)]
    return signs, correlation.mask


def _cost(shape: Shape, width: int, x: OfflineValue, bits: int, drop: int, thresholds: int) -> Cost:
    blocks = _blocks(bits - drop)
    joins, products = gates_price(tree(blocks), size(x.shape))
    opening, mask = number_price(shape, width)
    offline = thresholds * products + mask
    if _named(bits, drop) not in x.bits:
        offline += 8 * words(size(x.shape)) * (blocks * len(SUBSETS) + 1)
    steps = tuple((thresholds * down, thresholds * up) for down, up in joins)
    return Cost(ring_opening_cost(x) + steps + opening, offline)


def _named(bits: int, drop: int) -> str:
    return f"bits{bits}-{drop}" if drop else f"bits{bits}"


def _bits_of_mask(offline: Offline, x: OfflineValue, bits: int, drop: int) -> None:
    """The bit correlation of x's opening, made by the first comparison that reads x."""
    mask = offline.ring_mask(x)
    if bits > x.width or any(term.zeros < bits for term in mask.terms[1:]):
        raise CorrelationError(f"comparison of {x.key}: its opening does not cover {bits} bits; this is a bug")
    name = _named(bits, drop)
    if name in x.bits:
        return
    blocks, wide = _blocks(bits - drop), offline.runs * words(size(x.shape) // offline.runs)
    rho, label = MaskBits(mask.terms[0].value, bits, drop, offline.runs), f"{x.key}/{name}"
    products = offline.source.derived_bits(label, (blocks, len(SUBSETS), wide), BlockProducts(rho))
    top = offline.source.derived_bits(f"{label}/top", (wide,), TopBits(rho))
    if offline.role in ("server", "client"):
        one = products.new_full((blocks, 1, wide), -1 if offline.role == "server" else 0)
        offline.keep(label, BitCorrelation(torch.cat([one, products], dim=1), top))
    x.bits.add(name)


def _taken_bits(online: Online, x: Share, bits: int, drop: int) -> BitCorrelation:
    name = _named(bits, drop)
    if name not in x.bits:
        x.bits[name] = online.tape.take(f"{x.key}/{name}", BitCorrelation)
    correlation = x.bits[name]
    assert isinstance(correlation, BitCorrelation)
    return correlation


def _blocks(bits: int) -> int:
    return max(1, (bits - 1 + BLOCK - 1) // BLOCK)


def in_blocks(planes: Tensor) -> Tensor:
    """Planes [k - 1, W] -> [b, BLOCK, W]."""
    return _padded(planes).view(-1, BLOCK, planes.shape[-1])


def _padded(planes: Tensor) -> Tensor:
    """Zero planes on top, to whole blocks: equal bits, which change no comparison."""
    missing = -planes.shape[0] % BLOCK
    return torch.cat([planes, planes.new_zeros(missing, planes.shape[1])]) if missing else planes


@kernel(bindings.compare_blocks)
def compare_blocks(planes: Tensor, number: int, products: Tensor) -> tuple[Tensor, Tensor]:
    """With d the public number of `planes` [k, W] plus `number`, modulo 2^k: shares of [rho > d] and [rho = d] of each
    block by turns, and d's top bit. products [b, 16, W] -> [2 b, W] and [W].

    The first two are linear in the products. Bit by bit from the low end, with n = ~d, and for every subset S of the
    bits above:
        equal'[S] = equal[S + i] ^ n_i equal[S]            (rho_i ^ n_i) equal
        greater'[S] = greater[S + i] ^ n_i (products[S + i] ^ greater[S])     rho_i n_i ^ (rho_i ^ n_i) greater
    """
    planes = add_constant(planes, number)
    n = ~in_blocks(planes[:-1])
    equal, greater = products, torch.zeros_like(products)
    for i in range(BLOCK):
        bit = n[:, i : i + 1]
        without, with_ = _halves(equal)
        below, above = _halves(greater)
        alone = _halves(products[:, :: 1 << i])[1]
        equal = with_ ^ (bit & without)
        greater = bit & alone if i == 0 else above ^ (bit & (alone ^ below))
    return torch.stack([greater[:, 0], equal[:, 0]], 1).flatten(0, 1), planes[-1]


def _halves(table: Tensor) -> tuple[Tensor, Tensor]:
    """[b, 2 m, W] -> the subsets without and with their lowest bit, [b, m, W] each."""
    return table[:, 0::2], table[:, 1::2]


def _public_planes(x: Share, public: Tensor, bits: int, drop: int) -> Tensor:
    """Planes of what is public of x, made once for all thresholds."""
    name = f"planes of {_named(bits, drop)}"
    if name not in x.bits:
        x.bits[name] = to_planes(public, bits - drop, drop)
    planes = x.bits[name]
    assert isinstance(planes, Tensor)
    return planes
