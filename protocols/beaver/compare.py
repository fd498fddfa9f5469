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

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

from ..errors import CorrelationError
from ..rounds import Step, Swap
from .bitslice import add_constant, from_plane, to_planes, words
from .context import Offline, Online
from .primitive import Cost, Opening, Primitive, plain_openings, ring_opening_cost, size
from .values import Mask, MaskTerm, Opened, Shape, Share, Trace, mask_bytes

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

    @property
    def subsets(self) -> list[tuple[tuple[str, int], ...]]:
        """Products of masks the dealer shares: every subset (two or more) of every monomial's wires."""
        found: dict[tuple[tuple[str, int], ...], None] = {}
        for monomial in self.monomials:
            for r in range(2, len(monomial) + 1):
                found.update(dict.fromkeys(combinations(monomial, r)))
        return list(found)


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
            f"{key}/beta", shape, lambda: from_plane(beta_bits, count, offline.runs).view(shape), mask_bytes(width)
        )
        offline.keep(key, SignCorrelation(masks, products, beta_bits, beta))
        return Trace(key, shape, width, mask=Mask((MaskTerm(beta),), "bit"))

    def run(self, online: Online, key: str, width: int, x: Share, threshold: int, bits: int, drop: int = 0) -> Step:
        opened = yield from online.ring_opened(x)
        store = _taken_bits(online, x, bits, drop)
        correlation = online.tape.take(key, SignCorrelation)
        planes = _public_planes(x, opened.public, bits, drop, threshold)
        greater, equal = _compare_blocks(planes[:-1], store.blocks)
        wires: dict[tuple[str, int], Tensor] = {}
        for i in range(greater.shape[0]):
            wires["g", i], wires["p", i] = greater[i], equal[i]
        levels = tree(_blocks(bits - drop))
        for level, masks, products in zip(levels, correlation.masks, correlation.products, strict=True):
            wires = yield from _join(online, level, wires, masks, products)
        sign = wires["g", 0] ^ store.top
        if online.leader:
            sign = sign ^ planes[-1]
        mine = sign ^ correlation.beta_bits
        (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
        public = from_plane(mine ^ theirs, x.tensor.numel()).view(x.shape)
        flip = 1 - 2 * public
        share = flip * correlation.beta
        if online.leader:
            share += public
        return Share(key, share, width, opened=Opened(public, (flip,), (MaskTerm(correlation.beta),), "bit"))

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
        to_planes(-mask.terms[0].value >> drop, bits - drop, offline.runs)
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
    found = x.bits[name]
    assert isinstance(found, BitCorrelation)
    return found


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


def _compare_blocks(public: Tensor, products: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of [rho > d] and [rho = d] per block. public [k - 1, W], products [b, 16, W] -> two of [b, W].

    Both are linear in the products. Bit by bit from the low end, with n = ~d, and for every subset S of the bits above:
        equal'[S] = equal[S + i] ^ n_i equal[S]            (rho_i ^ n_i) equal
        greater'[S] = greater[S + i] ^ n_i (products[S + i] ^ greater[S])     rho_i n_i ^ (rho_i ^ n_i) greater
    """
    n = ~_padded(public).view(-1, BLOCK, public.shape[-1])
    equal, greater = products, torch.zeros_like(products)
    for i in range(BLOCK):
        bit = n[:, i : i + 1]
        without, with_ = _halves(equal)
        below, above = _halves(greater)
        alone = _halves(products[:, :: 1 << i])[1]
        equal = with_ ^ (bit & without)
        greater = bit & alone if i == 0 else above ^ (bit & (alone ^ below))
    return greater[:, 0], equal[:, 0]


def _halves(table: Tensor) -> tuple[Tensor, Tensor]:
    """[b, 2 m, W] -> the subsets without and with their lowest bit, [b, m, W] each."""
    return table[:, 0::2], table[:, 1::2]


def _public_planes(x: Share, public: Tensor, bits: int, drop: int, threshold: int) -> Tensor:
    """Planes of (public - threshold) modulo 2^bits: transposed once per value, the constant subtracted on planes."""
    name = f"planes of {_named(bits, drop)}"
    if name not in x.bits:
        x.bits[name] = to_planes(public >> drop, bits - drop)
    planes = x.bits[name]
    assert isinstance(planes, Tensor)
    return add_constant(planes, -(threshold >> drop))


def _join(online: Online, level: Level, wires: dict[tuple[str, int], Tensor], masks: Tensor, products: Tensor) -> Step:
    """One level of the tree: open its wires under masks, then expand each monomial over the masks' subset products."""
    mine = torch.stack([wires[wire] for wire in level.opened]) ^ masks
    (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
    public = {wire: mine[i] ^ theirs[i] for i, wire in enumerate(level.opened)}
    index = {wire: i for i, wire in enumerate(level.opened)}
    shares: dict[tuple[tuple[str, int], ...], Tensor] = {(wire,): masks[i] for wire, i in index.items()}
    shares.update({subset: products[i] for i, subset in enumerate(level.subsets)})
    out: dict[tuple[str, int], Tensor] = {}
    for number, monomials in enumerate(level.outputs):
        total = torch.zeros_like(masks[0])
        for monomial in monomials:
            if len(monomial) == 1:
                total ^= wires[monomial[0]]
                continue
            for r in range(len(monomial) + 1):
                for subset in combinations(monomial, r):
                    rest = [public[wire] for wire in monomial if wire not in subset]
                    if subset:
                        total ^= _and([shares[subset], *rest])
                    elif online.leader:
                        total ^= _and(rest)
        out["gp"[number % 2], number // 2] = total
    return out
