"""Tables read at a secret place, on the opening that the place has already: no message of their own.

x = c - rho modulo 2^k, with c public and rho the mask's low k bits (as in compare.py); `start` and the bits that are
dropped are taken off c and rho alike. With high and low parts c = c_H 2^f + c_L and rho = r_H 2^f + r_L, x lies in
cell c_H - r_H at place c_L - r_L, which is negative where a carry was missed: the row above, read below its start.
With e_j = 1 for j = r_H and 0 for all others, the dealer shares, for every cell j,

    [e_j (-r_L)^i],   and   sum_j sum_i [e_j (-r_L)^i] sum_d binomial(d, i) c_L^(d-i) table[c_H - j, d]

is the row's polynomial, linear in what is shared, so that each party computes its share alone. Where there are many
cells, the numbers come out of keys (point_function.py), which are shorter.

What a party sees: c, uniform because x's mask is; and its shares of the dealer's numbers, fresh and uniform each time,
or its key of them, fresh and pseudo-random.
Nothing tells which row was read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

from ..errors import CorrelationError
from ..kernels import bindings
from ..kernels.library import kernel
from ..rounds import Step
from ..wire import held_in
from .context import Offline, Online, Public
from .point_function import Point, PointLayout, TablePoints
from .primitive import Cost, Opening, Primitive, plain_openings, ring_opening_cost, size
from .source import ClientSource, Recipe
from .values import OfflineValue, Shape, Share, mask_bytes


@dataclass(frozen=True)
class DealerNumbers:
    """Shares of what the dealer makes of each element's mask, [..., rows, columns] (of e and r_L: a row for each cell),
    in the narrowest type that holds them; or how this party draws them, where they are used."""

    drawn: Tensor | Callable[[], Tensor]

    @property
    def numbers(self) -> Tensor:
        return self.drawn if isinstance(self.drawn, Tensor) else self.drawn()


@dataclass(frozen=True)
class Place:
    """Where a table is read. Cells: a power of two, named by the high bits of `bits`."""

    start: int
    bits: int
    low: int
    drop: int = 0

    @property
    def cells(self) -> int:
        return 1 << self.bits - self.low

    @property
    def fine(self) -> int:
        return self.low - self.drop

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The cell, and the place in it, of x modulo 2^bits."""
        past = (x & (1 << self.bits) - 1) >> self.drop
        return past >> self.fine, past & (1 << self.fine) - 1

    def rotated(self, opened: Tensor) -> tuple[Tensor, Tensor]:
        """Of c: the cell that each of the dealer's numbers is for, [..., cells], and the place."""
        high, rest = self.parts(opened - self.start)
        return high[..., None] - torch.arange(self.cells, device=high.device) & self.cells - 1, rest


@dataclass(frozen=True)
class MaskPlace:
    """Where rho, minus a mask, stands."""

    mask: Tensor
    at: Place

    def parts(self) -> tuple[Tensor, Tensor]:
        """The cell r_H, and r_L."""
        return self.at.parts(-self.mask)


@dataclass(frozen=True)
class CellNumbers:
    """e_j (-r_L)^i for every cell j and i below `count`, in integers of this type."""

    rho: MaskPlace
    count: int
    dtype: torch.dtype

    def value(self) -> Tensor:
        high, rest = self.rho.parts()
        shape, powers = high.shape, torch.stack(_powers(-rest, self.count), -1)
        rows = high[..., None, None].expand(*shape, 1, self.count)
        cells = torch.zeros(*shape, self.rho.at.cells, self.count, dtype=self.dtype, device=high.device)
        return cells.scatter_(-2, rows, powers[..., None, :].to(self.dtype))


@dataclass(frozen=True)
class CellPoint:
    """The same numbers by the one cell where they stand, for keys."""

    rho: MaskPlace
    count: int

    def point(self) -> Point:
        high, rest = self.rho.parts()
        return high.flatten(), torch.stack(_powers(-rest.flatten(), self.count), -1)


def mask_place(offline: Offline, x: OfflineValue, at: Place) -> MaskPlace:
    mask = offline.ring_mask(x)
    if at.bits > x.width or any(term.zeros < at.bits for term in mask.terms[1:]):
        raise CorrelationError(f"table read at {x.key}: its opening does not cover {at.bits} bits; this is a bug")
    return MaskPlace(mask.terms[0].value, at)


def keep_numbers(
    offline: Offline, label: str, shape: Shape, recipe: Recipe, width: int, bits: bool = False
) -> DealerNumbers:
    """Share what the dealer makes: additively, or its bits. Most of a tape are such numbers: a party may draw its own
    where they are used."""
    source = offline.source
    if isinstance(source, ClientSource) and source.later:
        return DealerNumbers(source.drawn_later(label, shape, width))
    derived = source.derived_bits if bits else source.derived
    return DealerNumbers(derived(label, shape, recipe, width, narrow=True))


class Lookup(Primitive):
    op = "lookup"
    keyed = True  # whether a table may be read by keys: they are for two parties

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, table: Public, **place: int
    ) -> OfflineValue:
        at, count = Place(**place), table.tensor.shape[1]
        rho = mask_place(offline, x, at)
        if (layout := self._layout(width, table, at)) is None:
            each = mask_bytes(width)
            dtype = held_in(each) if held_in(each).itemsize == each else torch.int64
            numbers = CellNumbers(rho, count, dtype)
            offline.keep(key, keep_numbers(offline, key, (*x.shape, at.cells, count), numbers, each))
            return OfflineValue(key, shape, width)
        point = CellPoint(rho, count)
        offline.keep(key, offline.points(key, size(x.shape) // offline.runs, layout, point))
        return OfflineValue(key, shape, width)

    def run(self, online: Online, key: str, width: int, x: Share, table: Public, **place: int) -> Step:
        opened = yield from online.ring_opened(x)
        if self._layout(width, table, Place(**place)) is None:
            numbers = online.tape.take(key, DealerNumbers).numbers
            return Share(key, read_table(opened.public, table.tensor, numbers, **place), width)
        places = opened.public.flatten()
        share = torch.empty_like(places)
        for part, numbers in online.tape.take(key, TablePoints).parts():
            share[part] = read_table(places[part], table.tensor, numbers, **place)
        return Share(key, share.view(x.shape), width)

    def cost(self, shape: Shape, width: int, x: OfflineValue, table: Public, **place: int) -> Cost:
        numbers = size(shape) * size(tuple(table.tensor.shape))
        opening, macs = ring_opening_cost(x), numbers * (table.tensor.shape[1] + 1) // 2
        if (layout := self._layout(width, table, Place(**place))) is None:
            return Cost(opening, numbers * mask_bytes(width), macs)
        words = 8 * size(shape) * layout.words
        return Cost(opening, words, macs, passed_on=words)  # and AES's keys, of all points: PricingEngine

    def _layout(self, width: int, table: Public, at: Place) -> PointLayout | None:
        """Of keys, where they are less than the dealer's numbers."""
        layout = PointLayout(at.cells, table.tensor.shape[1], mask_bytes(width))
        return layout if self.keyed and layout.pays else None

    def opens(self, x: OfflineValue, table: Public, **place: int) -> list[Opening]:
        return plain_openings(x, but=("scaled",))


@kernel(bindings.read_table)
def read_table(x: Tensor, table: Tensor, numbers: Tensor, start: int, bits: int, low: int, drop: int = 0) -> Tensor:
    """Of the opened x, the sum over cells and powers of the dealer's numbers, as `lookup` has it above."""
    at, count = Place(start, bits, low, drop), table.shape[1]
    cell, rest = at.rotated(x)
    rows, powers = table[cell], _powers(rest, count)
    total = torch.zeros_like(x)
    for d in range(count):
        for i in range(d + 1):
            part = (numbers[..., i].long() * rows[..., d]).sum(-1)
            total += part * powers[d - i] * (comb(d, i) << (at.fine * (count - 1 - d)))
    return total


def _powers(x: Tensor, count: int) -> list[Tensor]:
    """1, x, x^2 ...: so many."""
    powers = [torch.ones_like(x)]
    while len(powers) < count:
        powers.append(powers[-1] * x)
    return powers
