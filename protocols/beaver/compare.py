"""Exact comparison x < t with a public threshold t, on an opening that x may already have.

x = c - rho modulo 2^k with c public and rho the mask's low k bits, |x - t| < 2^(k-1), k at most the w - s bits of a
rescaled value. The answer is the sign, bit k-1 of (c - t) - rho: the exclusive or of the two top bits and of the borrow
below them. The borrow, [rho' > d'] on k-1 bits, is found on bit planes shared by exclusive or (bitslice.py):

  blocks   4 bits each. The dealer shares the products of every subset of a block's bits of rho, so that "greater" and
           "equal" of a block against the public d are linear: no messages. All thresholds of one x share these.
  tree     groups of blocks join by G = g3 ^ p3 g2 ^ p3 p2 g1 ^ p3 p2 p1 g0, P = p3 p2 p1 p0: one round per level, as
           each input is opened under a random bit whose subset products the dealer shares (one round for up to 5
           blocks, k = 21).
  result   the sign bit is opened under a random bit beta that is also shared additively: sign = e + (1 - 2 e) beta.

What a party sees: the opened wires and e, each masked by a bit of its own that only the dealer knows.

Legend: n elements, W words per plane, b = ceil((k - 1) / 4) blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

import torch
from torch import Tensor

from ..errors import CorrelationError
from ..kernels import bindings
from ..kernels.library import kernel
from ..rounds import Step, Swap
from .bitslice import add_constant, from_plane, plane_by_run, planes_by_run, to_planes, words
from .context import Offline, Online
from .primitive import Cost, Opening, Primitive, plain_openings, ring_opening_cost, size
from .values import Mask, MaskTerm, Opened, Shape, Share, Trace, mask_bytes, of_shape

BLOCK = 4
INNER, LAST = 4, 5  # fan-in of the tree's levels, and of its root
SUBSETS = range(1, 1 << BLOCK)  # of a block's bits, as masks


@dataclass(frozen=True)
class Level:
    """One level of the tree. Inputs are wires ("g", i) and ("p", i), i counting blocks from the low end.

    `opened`: wires that travel under a mask. `monomials`: products needed, of two wires or more.
    `outputs`: per output, its monomials (a single wire is a monomial of one).
    """

    opened: tuple[tuple[str, int], ...]
    monomials: tuple[tuple[tuple[str, int], ...], ...]
    outputs: tuple[tuple[tuple[tuple[str, int], ...], ...], ...]

    @cached_property
    def subsets(self) -> list[tuple[tuple[str, int], ...]]:
        """Products of masks the dealer shares: every subset (two or more) of every monomial's wires."""
        products: dict[tuple[tuple[str, int], ...], None] = {}
        for monomial in self.monomials:
            for r in range(2, len(monomial) + 1):
                products.update(dict.fromkeys(combinations(monomial, r)))
        return list(products)


@lru_cache
def tree(blocks: int) -> tuple[Level, ...]:
    """The levels that join `blocks` blocks into one borrow. Outputs alternate g, p from the low end; the root is g."""
    levels = []
    while blocks > 1:
        root = blocks <= LAST
        groups = [range(i, min(i + INNER, blocks)) for i in range(0, blocks, INNER)] if not root else [range(blocks)]
        outputs = []
        for number, group in enumerate(groups):
            high = list(reversed(group))
            outputs.append(
                tuple((*(("p", j) for j in high[: high.index(i)]), ("g", i)) for i in high)  # g
            )
            # Nothing lies below the lowest group, so its "equal" is never asked for.
            outputs.append((tuple(("p", j) for j in high),) if number and not root else ())
        monomials = tuple(dict.fromkeys(m for out in outputs for m in out if len(m) > 1))
        opened = tuple(dict.fromkeys(wire for m in monomials for wire in m))
        levels.append(Level(opened, monomials, tuple(outputs[:1] if root else outputs)))
        blocks = len(groups)
    return tuple(levels)


@dataclass(frozen=True)
class BitCorrelation:
    """Bits of rho: shares of its blocks' products by subset [b, 16, W] (0: the constant one), of its top bit [W]."""

    blocks: Tensor
    top: Tensor


@dataclass(frozen=True)
class SignCorrelation:
    """For one threshold: masks of each level's wires and their subset products, and the bit beta in both sharings."""

    masks: list[Tensor]
    products: list[Tensor]
    beta_bits: Tensor
    beta: Tensor


class Less(Primitive):
    """x < threshold, elementwise, as a shared 0/1 (scale 0). `bits`: k. `drop`: of c, rho and t alike, the lowest bits
    are not read."""

    op = "less"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: Trace, threshold: int, bits: int, drop: int = 0
    ) -> Trace:
        source = offline.source
        _bits_of_mask(offline, x, bits, drop)
        wide, count = offline.runs * words(size(shape) // offline.runs), size(shape)
        masks, products = [], []
        for number, level in enumerate(tree(_blocks(bits - drop))):
            mask = source.uniform_bits(f"{key}/{number}/masks", (len(level.opened), wide))
            index = {wire: i for i, wire in enumerate(level.opened)}
            masks.append(mask)
            products.append(
                source.derived_bits(
                    f"{key}/{number}/products",
                    (len(level.subsets), wide),
                    lambda mask=mask, level=level, index=index: torch.stack(
                        [_and([mask[index[wire]] for wire in subset]) for subset in level.subsets]
                    ),
                )
            )
        beta_bits = source.uniform_bits(f"{key}/beta/bits", (wide,))
        beta = source.derived(
            f"{key}/beta", shape, lambda: plane_by_run(beta_bits, count, offline.runs).view(shape), mask_bytes(width)
        )
        offline.keep(key, SignCorrelation(masks, products, beta_bits, beta))
        return Trace(key, shape, width, mask=Mask((MaskTerm(beta),), "bit"))

    def run(self, online: Online, key: str, width: int, x: Share, threshold: int, bits: int, drop: int = 0) -> Step:
        opened = yield from online.ring_opened(x)
        store = _taken_bits(online, x, bits, drop)
        correlation = online.tape.take(key, SignCorrelation)
        planes = _public_planes(x, opened.public, bits, drop)
        wires, top = compare_blocks(planes, -(threshold >> drop), store.blocks)
        levels = tree(_blocks(bits - drop))
        for level, masks, products in zip(levels, correlation.masks, correlation.products, strict=True):
            wires = yield from _joined(online, level, wires, masks, products)
        sign = wires[0] ^ store.top
        if online.leader:
            sign = sign ^ top
        mine = sign ^ of_shape(sign, correlation.beta_bits)
        (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
        public = from_plane(mine ^ theirs, x.tensor.numel()).view(x.shape)
        flip = 1 - 2 * public
        beta = correlation.beta.long()
        share = flip * beta
        if online.leader:
            share += public
        return Share(key, share, width, opened=Opened(public, (flip,), (MaskTerm(beta),), "bit"))

    def cost(self, shape: Shape, width: int, x: Trace, threshold: int, bits: int, drop: int = 0) -> Cost:
        blocks, word_bytes = _blocks(bits - drop), 8 * words(size(shape))
        levels = tree(blocks)
        sizes = [word_bytes * len(level.opened) for level in levels] + [word_bytes]
        steps = tuple((bytes_, bytes_) for bytes_ in sizes)
        offline = word_bytes * sum(len(level.subsets) for level in levels) + mask_bytes(width) * size(shape)
        if _named(bits, drop) not in x.bits:
            offline += word_bytes * (blocks * len(SUBSETS) + 1)
        return Cost(ring_opening_cost(x) + steps, offline)

    def opens(self, x: Trace, threshold: int, bits: int, drop: int = 0) -> list[Opening]:
        return plain_openings(x, but=("scaled",))


def _named(bits: int, drop: int) -> str:
    return f"bits{bits}-{drop}" if drop else f"bits{bits}"


def _bits_of_mask(offline: Offline, x: Trace, bits: int, drop: int) -> None:
    """The bit correlation of x's opening, made by the first comparison that reads x."""
    mask = offline.ring_mask(x)
    if bits > x.width or any(term.zeros < bits for term in mask.terms[1:]):
        raise CorrelationError(f"comparison of {x.key}: its opening does not cover {bits} bits; this is a bug")
    name = _named(bits, drop)
    if name in x.bits:
        return
    blocks, wide = _blocks(bits - drop), offline.runs * words(size(x.shape) // offline.runs)
    rho = (
        planes_by_run(-mask.terms[0].value, bits - drop, drop, offline.runs)
        if offline.role == "dealer"
        else torch.empty(0)
    )
    label = f"{x.key}/{name}"
    products = offline.source.derived_bits(label, (blocks, len(SUBSETS), wide), lambda: _subset_products(rho[:-1]))
    top = offline.source.derived_bits(f"{label}/top", (wide,), lambda: rho[-1])
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


def _subset_products(rho: Tensor) -> Tensor:
    """Planes [k - 1, W] -> products of every non-empty subset of each block's bits [b, 15, W]."""
    grouped = _padded(rho).view(-1, BLOCK, rho.shape[-1])
    return torch.stack([_and([grouped[:, i] for i in range(BLOCK) if mask >> i & 1]) for mask in SUBSETS], dim=1)


def _blocks(bits: int) -> int:
    return max(1, (bits - 1 + BLOCK - 1) // BLOCK)


def _padded(planes: Tensor) -> Tensor:
    """Zero planes on top, to whole blocks: equal bits, which change no comparison."""
    missing = -planes.shape[0] % BLOCK
    return torch.cat([planes, planes.new_zeros(missing, planes.shape[1])]) if missing else planes


def _and(planes: list[Tensor]) -> Tensor:
    out = planes[0]
    for plane in planes[1:]:
        out = out & plane
    return out


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
    n = ~_padded(planes[:-1]).view(-1, BLOCK, planes.shape[-1])
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


def _joined(online: Online, level: Level, wires: Tensor, masks: Tensor, products: Tensor) -> Step:
    """One level of the tree: open its wires under masks, then expand each monomial over the masks' subset products."""
    wires_opened = wires[[_place(wire) for wire in level.opened]]
    mine = wires_opened ^ of_shape(wires_opened, masks)
    (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
    return join(_terms(level, online.leader), [*masks, *products, *wires], mine ^ theirs, len(level.outputs))


def _place(wire: tuple[str, int]) -> int:
    """Of g and p by turns, block by block."""
    kind, block = wire
    return 2 * block + "gp".index(kind)


@lru_cache
def _terms(level: Level, leader: bool) -> Tensor:
    """What a level sums up, [terms, 3]: the output, the share (-1: none), the opened wires as bits. Shares are the
    masks of the opened wires, the products of the subsets, and all wires."""
    index = {wire: i for i, wire in enumerate(level.opened)}
    shared: list[tuple[tuple[str, int], ...]] = [*((wire,) for wire in level.opened), *level.subsets]
    shares = {subset: i for i, subset in enumerate(shared)}
    terms = []
    for output, monomials in enumerate(level.outputs):
        for monomial in monomials:
            if len(monomial) == 1:
                terms.append((output, len(shares) + _place(monomial[0]), 0))
                continue
            for r in range(0 if leader else 1, len(monomial) + 1):
                for subset in combinations(monomial, r):
                    rest = sum(1 << index[wire] for wire in monomial if wire not in subset)
                    terms.append((output, shares[subset] if subset else -1, rest))
    return torch.tensor(terms)


@kernel(bindings.join)
def join(terms: Tensor, shares: Sequence[Tensor], opened: Tensor, outputs: int) -> Tensor:
    """[outputs, W]: the exclusive or of `terms`, each the product of a share and of opened wires (_terms)."""
    out = opened.new_zeros(outputs, opened.shape[-1])
    for output, share, wires in terms.tolist():
        factors = [plane for i, plane in enumerate(opened) if wires >> i & 1]
        out[output] ^= _and(factors if share < 0 else [shares[share], *factors])
    return out
