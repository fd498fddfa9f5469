"""Gates on bits shared by exclusive or, and a shared bit as a number. Bits are planes, 64 to a word (bitslice.py).

Exclusive or costs nothing. Products of several wires take one round: each wire is opened under a random bit, and the
dealer shares the products of these bits, of every subset of a product's wires:

    x y = X Y + X b + Y a + [a b],   X = x + a and Y = y + b public, likewise for more wires.

A bit s becomes a number by its opening e = s + beta under a random bit beta that is also shared additively:
s = e + (1 - 2 e) beta.

What a party sees: the opened wires and e, each masked by a bit of its own that only the dealer knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import combinations

import torch
from torch import Tensor

from ..kernels import bindings
from ..kernels.library import kernel
from ..rounds import Step, Swap
from .bitslice import from_plane, plane_by_run, words
from .context import Offline, Online
from .primitive import size
from .values import Mask, MaskTerm, OfflineValue, Opened, Shape, Share, mask_bytes, of_shape

Wires = tuple[int, ...]
FAN_IN, LAST = 4, 5  # of levels of gates, and of the last one
CHUNK = 512  # words


@dataclass(frozen=True)
class Level:
    """One round of gates. `outputs`: per output, the products of wires that it is the exclusive or of; a single wire is
    a product of one, and is not opened."""

    outputs: tuple[tuple[Wires, ...], ...]

    @cached_property
    def products(self) -> tuple[Wires, ...]:
        """Products of two wires or more."""
        return tuple(dict.fromkeys(wires for out in self.outputs for wires in out if len(wires) > 1))

    @cached_property
    def opened(self) -> Wires:
        """The wires that travel under a mask."""
        return tuple(dict.fromkeys(wire for wires in self.products for wire in wires))

    @cached_property
    def subsets(self) -> tuple[Wires, ...]:
        """Products of masks the dealer shares: every subset (two or more) of every product's wires."""
        subsets: dict[Wires, None] = {}
        for wires in self.products:
            for r in range(2, len(wires) + 1):
                subsets.update(dict.fromkeys(combinations(wires, r)))
        return tuple(subsets)


@lru_cache
def all_of(count: int) -> tuple[Level, ...]:
    """The levels that make one wire of so many: whether all are set."""
    levels = []
    while count > 1:
        fan_in = LAST if count <= LAST else FAN_IN
        groups = [tuple(range(i, min(i + fan_in, count))) for i in range(0, count, fan_in)]
        levels.append(Level(tuple((wires,) for wires in groups)))
        count = len(groups)
    return tuple(levels)


@dataclass(frozen=True)
class GateCorrelation:
    """Of a level: masks of its opened wires [opened, W], and the products of their subsets [subsets, W]."""

    masks: Tensor
    products: Tensor


@dataclass(frozen=True)
class SubsetProducts:
    """Masks of the opened wires [opened, W] -> the products of the subsets [subsets, W], each made of one with a wire
    less, which comes before it."""

    level: Level
    masks: Tensor

    def value(self) -> Tensor:
        level, masks = self.level, self.masks
        rows: dict[Wires, Tensor] = {(wire,): mask for wire, mask in zip(level.opened, masks, strict=True)}
        products = masks.new_empty(len(level.subsets), masks.shape[-1])
        for subset, product in zip(level.subsets, products, strict=True):
            rows[subset] = torch.bitwise_and(rows[subset[:-1]], rows[subset[-1:]], out=product)
        return products


@dataclass(frozen=True)
class BitNumbers:
    """Planes [W] of `runs` -> 0 and 1 of a shape."""

    bits: Tensor
    shape: Shape
    runs: int

    def value(self) -> Tensor:
        return plane_by_run(self.bits, size(self.shape), self.runs).view(self.shape)


@dataclass(frozen=True)
class BitMask:
    """Random bits beta, in both sharings: [W], and of the value's shape."""

    bits: Tensor
    numbers: Tensor


def gates(offline: Offline, label: str, levels: Sequence[Level], count: int) -> list[GateCorrelation]:
    """The correlations of levels on planes of so many bits."""
    wide, source = _wide(offline, count), offline.source
    correlations = []
    for number, level in enumerate(levels):
        masks = source.uniform_bits(f"{label}/{number}/masks", (len(level.opened), wide))
        recipe, shape = SubsetProducts(level, masks), (len(level.subsets), wide)
        shared = source.derived_bits(f"{label}/{number}/products", shape, recipe)
        correlations.append(GateCorrelation(masks, shared))
    return correlations


def through(online: Online, levels: Sequence[Level], wires: Tensor, correlations: list[GateCorrelation]) -> Step:
    """Wires [inputs, W] -> [outputs, W], a round a level."""
    for level, correlation in zip(levels, correlations, strict=True):
        rows, factors, places = expansion(level, wires.device)
        mine = wires[places]
        mine = mine ^ of_shape(mine, correlation.masks)
        (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
        wires = join(rows, factors, correlation.masks, correlation.products, wires, mine ^ theirs, online.leader)
    return wires


def gates_price(levels: Iterable[Level], count: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """Of planes of so many bits: bytes by round, both ways, and bytes from the dealer."""
    each = 8 * words(count)
    sizes = [(each * len(level.opened), each * len(level.subsets)) for level in levels]
    return tuple((opened, opened) for opened, _ in sizes), sum(products for _, products in sizes)


def bit_mask(offline: Offline, key: str, shape: Shape, width: int) -> BitMask:
    """What `as_number` needs for a result of this shape."""
    bits = offline.source.uniform_bits(f"{key}/beta/bits", (_wide(offline, size(shape)),))
    numbers = BitNumbers(bits, shape, offline.runs)
    return BitMask(bits, offline.source.derived(f"{key}/beta", shape, numbers, mask_bytes(width)))


def offline_bits(key: str, shape: Shape, width: int, mask: BitMask) -> OfflineValue:
    """What `as_number` gives, in the offline phase."""
    return OfflineValue(key, shape, width, mask=Mask((MaskTerm(mask.numbers, bits=1),), "bit"))


def as_number(online: Online, key: str, shape: Shape, width: int, plane: Tensor, mask: BitMask) -> Step:
    """A plane [W] of bits -> the shared 0 and 1 of the shape, open."""
    mine = plane ^ of_shape(plane, mask.bits)
    (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
    public = from_plane(mine ^ theirs, size(shape)).view(shape)
    flip, beta = 1 - 2 * public, mask.numbers.long()
    share = flip * beta
    if online.leader:
        share += public
    return Share(key, share, width, opened=Opened(public, (flip,), (MaskTerm(beta),), "bit"))


def number_price(shape: Shape, width: int) -> tuple[tuple[tuple[int, int], ...], int]:
    """Of `as_number`, as of `gates_price`."""
    plane = 8 * words(size(shape))
    return ((plane, plane),), mask_bytes(width) * size(shape)


def _wide(offline: Offline, count: int) -> int:
    """Words of a plane; each run's bits begin a word."""
    return offline.runs * words(count // offline.runs)


@lru_cache
def expansion(level: Level, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """What `join` reads, as indices: `rows` [outputs, products, 2^n], `factors` [outputs, products, n], and the wires
    that are opened.

    Row S of a product is the share that is multiplied by the opened wires outside of S (bit i: the product's wire i);
    0 is none, 1 the public one, then come the masks of the opened wires, the products of the subsets, and all wires.
    Factor 0 is one, then come the opened wires. With n the most wires of a product, others are filled up by none and
    one."""
    place = {wire: i for i, wire in enumerate(level.opened)}
    share_of = {subset: i for i, subset in enumerate([*((wire,) for wire in level.opened), *level.subsets], start=2)}
    share_of[()] = 1
    n, most = max((len(wires) for wires in level.products), default=0), max(map(len, level.outputs))
    rows = torch.zeros(len(level.outputs), most, 1 << n, dtype=torch.int64)
    factors = torch.zeros(len(level.outputs), most, n, dtype=torch.int64)
    first_wire = 2 + len(level.opened) + len(level.subsets)
    for i, products in enumerate(level.outputs):
        for j, wires in enumerate(products):
            if len(wires) == 1:
                rows[i, j, 0] = first_wire + wires[0]
                continue
            factors[i, j, : len(wires)] = torch.tensor([1 + place[wire] for wire in wires])
            for subset in range(1 << len(wires)):
                rows[i, j, subset] = share_of[tuple(wire for at, wire in enumerate(wires) if subset >> at & 1)]
    return rows.to(device), factors.to(device), torch.tensor(level.opened, dtype=torch.int64, device=device)


@kernel(bindings.join)
def join(
    rows: Tensor, factors: Tensor, masks: Tensor, products: Tensor, wires: Tensor, opened: Tensor, leader: bool
) -> Tensor:
    """[outputs, W]: the exclusive or of each output's products, by the indices of `expansion`. A product is folded wire
    by wire: with X the opened wire i, rows[S] becomes rows[S + i] ^ X rows[S]."""
    if not opened.is_cpu or opened.shape[-1] <= CHUNK:
        return _folded(rows, factors, masks, products, wires, opened, leader)
    parts = zip(*(x.split(CHUNK, dim=1) for x in (masks, products, wires, opened)), strict=True)  # that fit a cache
    return torch.cat([_folded(rows, factors, a, b, c, d, leader) for a, b, c, d in parts], dim=1)


def _folded(
    rows: Tensor, factors: Tensor, masks: Tensor, products: Tensor, wires: Tensor, opened: Tensor, leader: bool
) -> Tensor:
    none = opened.new_zeros(1, opened.shape[-1])
    summed = torch.cat([none, ~none if leader else none, masks, products, wires])[rows]
    factors_of = torch.cat([~none, opened])[factors]
    for i in range(factors.shape[-1]):
        summed = summed[:, :, 1::2] ^ (factors_of[:, :, i : i + 1] & summed[:, :, 0::2])
    out = summed[:, 0, 0]
    for j in range(1, rows.shape[1]):
        out = out ^ summed[:, j, 0]
    return out
