"""What a secret's cell alone decides, by bits: no number for each cell, and a bit for each cell from the dealer.

x = c - rho modulo 2^k lies in cell c_H - r_H, or in the one below where a carry was missed (lookup.py). The dealer
shares, by exclusive or, a bit for each cell, set at -r_H alone. Turned by the public c_H, it is set at x's cell.

exp      Of x's last cells, each bit e_r is opened under a random bit b_r. With N = e^(-r_L), and N b_r from the dealer,
         e^x = sum_r e_r N T_r(c_L) is linear in what is shared, T_r the exponential of a cell and a place in it. That
         is one round, and no more numbers where there are more cells.

reached  For cell c of a row: whether any of its x, of those that are kept, lies in c or above. Of one x, the exclusive
         or of the bits from c on says it. Of some x, the exclusive or of these says whether they are odd many. Each
         parity of a cell takes some x of the row, by a public choice of its own. Where no x reaches c, all parities are
         0; where some do, all are 0 of one cell in 2^PARITIES, which is missed. Cells are chosen for apart from each
         other: a cell that is missed says nothing of the next, which as many x may reach. So parties sum up without a
         message, and then ask whether all parities are 0 (gates.py). Of no more than PARITIES x, each is a parity of
         its own, and no cell is missed. (An "or" by random parities: Razborov, Math. Notes 41, 1987; Smolensky, STOC
         1987.)

What a party sees: c, uniform because x's mask is; opened bits, each masked by a bit of its own that only the dealer
knows; and its shares of what the dealer makes, fresh and uniform each time. Nothing tells which cell x is in.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..kernels import bindings
from ..kernels.library import kernel
from ..operations.lookup import between
from ..ring import logical_shift
from ..rounds import Step, Swap
from .bitslice import plane_by_run, to_planes, words
from .context import Offline, Online, Public
from .gates import (
    BitMask,
    GateCorrelation,
    all_of,
    as_number,
    bit_mask,
    gates,
    gates_price,
    number_price,
    offline_bits,
    through,
)
from .lookup import DealerNumbers, MaskPlace, Place, keep_numbers, mask_place
from .primitive import Cost, Opening, Primitive, plain_openings, ring_opening_cost, size
from .values import OfflineValue, Shape, Share, mask_bytes, of_shape

PARITIES, PAD = 20, 8
WORD = 64


@dataclass(frozen=True)
class ExpCorrelation:
    """`cells`: a bit for each cell of each x. `masks`: all b_r, [rows, W]. `numbers`: N, and all N b_r."""

    cells: DealerNumbers
    masks: Tensor
    numbers: DealerNumbers


@dataclass(frozen=True)
class ReachedCorrelation:
    cells: DealerNumbers
    levels: list[GateCorrelation]
    mask: BitMask


@dataclass(frozen=True)
class CellBits:
    """A bit for each cell, set at -r_H: in words of 64, [..., 1, words]."""

    rho: MaskPlace

    def value(self) -> Tensor:
        cells = self.rho.at.cells
        place = -self.rho.parts()[0] & cells - 1
        bits = torch.zeros(*place.shape, max(1, cells // WORD), dtype=torch.int64, device=place.device)
        return bits.scatter_(-1, (place // WORD)[..., None], (1 << place % WORD)[..., None])[..., None, :]


@dataclass(frozen=True)
class ExpNumbers:
    """N, and all N b_r, of the masks' planes [rows, W]: [..., 1 + rows, 1]."""

    rho: MaskPlace
    masks: Tensor
    rate: float
    fraction: int
    runs: int

    def value(self) -> Tensor:
        _, rest = self.rho.parts()
        turn = -self.rate / (1 << self.rho.at.fine)
        number = torch.exp(rest.double() * turn).mul_(2.0**self.fraction).round_().long()
        bits = [plane_by_run(mask, rest.numel(), self.runs).view(rest.shape) for mask in self.masks]
        return torch.stack([number, *(number * bit for bit in bits)], -1)[..., None]


class Exponential(Primitive):
    op = "exp"

    def correlate(
        self,
        offline: Offline,
        key: str,
        shape: Shape,
        width: int,
        x: OfflineValue,
        table: Public,
        rate: float,
        fraction: int,
        **place: int,
    ) -> OfflineValue:
        at, rows, count = Place(**place), table.tensor.shape[0], size(x.shape)
        rho = mask_place(offline, x, at)
        cells = _bits_of_cells(offline, f"{key}/cells", x, at)
        masks = offline.source.uniform_bits(f"{key}/masks", (rows, offline.runs * words(count // offline.runs)))

        recipe = ExpNumbers(rho, masks, rate, fraction, offline.runs)
        numbers = keep_numbers(offline, key, (*x.shape, 1 + rows, 1), recipe, mask_bytes(width))
        offline.keep(key, ExpCorrelation(cells, masks, numbers))
        return OfflineValue(key, shape, width)

    def run(
        self, online: Online, key: str, width: int, x: Share, table: Public, rate: float, fraction: int, **place: int
    ) -> Step:
        opened = yield from online.ring_opened(x)
        correlation = online.tape.take(key, ExpCorrelation)
        mine = last_cells(opened.public, correlation.cells.numbers, table.tensor.shape[0], **place)
        mine = mine ^ of_shape(mine, correlation.masks)
        (theirs,) = yield [Swap(mine, tuple(mine.shape), xor=True)]
        numbers = correlation.numbers.numbers
        return Share(key, read_exponential(opened.public, table.tensor, mine ^ theirs, numbers, **place), width)

    def cost(
        self, shape: Shape, width: int, x: OfflineValue, table: Public, rate: float, fraction: int, **place: int
    ) -> Cost:
        rows, count = table.tensor.shape[0], size(shape)
        opened, each = 8 * rows * words(count), _bytes_of_cells(Place(**place).cells) + (1 + rows) * mask_bytes(width)
        return Cost((*ring_opening_cost(x), (opened, opened)), count * each, count * rows)

    def opens(self, x: OfflineValue, table: Public, **more: float) -> list[Opening]:
        return plain_openings(x, but=("scaled",))


class Reached(Primitive):
    op = "reached"

    def correlate(
        self, offline: Offline, key: str, shape: Shape, width: int, x: OfflineValue, *keep: Public, **place: int
    ) -> OfflineValue:
        correlation = ReachedCorrelation(
            _bits_of_cells(offline, f"{key}/cells", x, Place(**place)),
            gates(offline, key, all_of(_parities(x.shape)), size(shape)),
            bit_mask(offline, key, shape, width),
        )
        offline.keep(key, correlation)
        return offline_bits(key, shape, width, correlation.mask)

    def run(self, online: Online, key: str, width: int, x: Share, *keep: Public, **place: int) -> Step:
        opened = yield from online.ring_opened(x)
        correlation = online.tape.take(key, ReachedCorrelation)
        choices = parity_choices(x.shape[-1], Place(**place).cells).to(opened.public.device)
        kept = keep[0].tensor.expand(opened.public.shape).contiguous() if keep else None
        parities = row_parities(opened.public, kept, correlation.cells.numbers, choices, _parities(x.shape), **place)
        none = ~parities if online.leader else parities
        (none, *_) = yield from through(online, all_of(len(none)), none, correlation.levels)
        shape = (*x.shape[:-1], Place(**place).cells)
        some = ~none if online.leader else none
        return (yield from as_number(online, key, shape, width, some, correlation.mask))

    def cost(self, shape: Shape, width: int, x: OfflineValue, *keep: Public, **place: int) -> Cost:
        levels, products = gates_price(all_of(_parities(x.shape)), size(shape))
        opening, mask = number_price(shape, width)
        bits = size(x.shape) * _bytes_of_cells(Place(**place).cells)
        return Cost(ring_opening_cost(x) + levels + opening, bits + products + mask)

    def opens(self, x: OfflineValue, *keep: Public, **place: int) -> list[Opening]:
        return plain_openings(x, but=("scaled",))


def _parities(shape: Shape) -> int:
    return min(max(shape[-1], 1), PARITIES)


@lru_cache(maxsize=16)
def parity_choices(count: int, cells: int) -> Tensor:
    """Of so many x, in which parities of which cells each counts: [count, words of cells, parities], padded with zeros
    to a multiple of `PAD` parities."""
    words_of, parities = max(1, cells // WORD), _parities((count,))
    choices = torch.zeros(count, words_of, -(-parities // PAD) * PAD, dtype=torch.int64)
    if count <= PARITIES:
        for place in range(count):
            choices[place, :, place] = -1
        return choices
    drawn = hashlib.shake_128(b"blindformer parities").digest(8 * count * words_of * parities)
    choices[..., :parities] = torch.frombuffer(bytearray(drawn), dtype=torch.int64).view(count, words_of, parities)
    return choices


def _bytes_of_cells(cells: int) -> int:
    """A bit for each cell, in whole bytes: a power of two."""
    return max(1, cells // 8)


def _bits_of_cells(offline: Offline, label: str, x: OfflineValue, at: Place) -> DealerNumbers:
    """Of each x a bit for each cell, in one integer or in several of 64 bits, set at -r_H: [..., 1, integers]."""
    recipe, wide = CellBits(mask_place(offline, x, at)), max(1, at.cells // WORD)
    return keep_numbers(offline, label, (*x.shape, 1, wide), recipe, min(8, _bytes_of_cells(at.cells)), bits=True)


@kernel(bindings.last_cells)
def last_cells(x: Tensor, cells: Tensor, rows: int, start: int, bits: int, low: int, drop: int = 0) -> Tensor:
    """Of the opened x, this party's bits of its last `rows` cells: planes [rows, W]."""
    at = Place(start, bits, low, drop)
    cell, _ = at.parts(x - start)
    place = torch.arange(at.cells - rows, at.cells, device=x.device) - cell[..., None] & at.cells - 1
    bits_of = cells[..., 0, :].gather(-1, place // WORD).long() >> place % WORD & 1
    return to_planes((bits_of << torch.arange(rows, device=x.device)).sum(-1), rows)


@kernel(bindings.row_parities)
def row_parities(
    x: Tensor, keep: Tensor | None, cells: Tensor, choices: Tensor, count: int, start: int, bits: int, low: int
) -> Tensor:
    """Of the opened x [..., n], this party's planes [count, W]: by row and cell, whether of those that are kept, and
    chosen for a parity of the cell, odd many lie in the cell or above it."""
    at = Place(start, bits, low)
    cell, _ = at.parts(x - start)
    above = _above(_turned(cells[..., 0, :].long(), cell, at.cells), at.cells).reshape(-1, *choices.shape[:2])
    if keep is not None:
        above = above * (keep != 0).view(*above.shape[:2], 1)
    rows = max(1, (1 << 16 if x.is_cpu else 1 << 24) // (choices.numel() or 1))  # at once: what fits a cache
    odd = torch.cat([_odd(some, choices[..., :count]) for some in above.split(rows)])
    return _in_planes(odd, at.cells)


def _turned(bits: Tensor, cell: Tensor, cells: int) -> Tensor:
    """A bit for each cell, in words [..., W]: the bit of c is then that of c - `cell`, modulo `cells`."""
    size, wide = min(cells, WORD), bits.shape[-1]
    at = torch.arange(wide, device=cell.device) - (cell // WORD)[..., None] & wide - 1
    by, bits = (cell % WORD)[..., None], logical_shift(bits, 0, size)
    above, below = bits.gather(-1, at), bits.gather(-1, at - 1 & wide - 1)
    return logical_shift(above << by | logical_shift(below, 1) >> size - 1 - by, 0, size)


def _above(bits: Tensor, cells: int) -> Tensor:
    """For each cell, the exclusive or of its bit and of those above it: words [..., W]."""
    shift = 1
    while shift < min(cells, WORD):
        bits, shift = bits ^ logical_shift(bits, shift), 2 * shift
    odd = bits & 1  # of all of a word
    return bits ^ -(odd.flip(-1).cumsum(-1).flip(-1) - odd & 1)


def _odd(above: Tensor, choices: Tensor) -> Tensor:
    """Words [rows, n, W] and choices of them [n, W, count]: the exclusive or over n of what is chosen [rows, W,
    count]."""
    chosen = above[..., None] & choices
    while (n := chosen.shape[1]) > 1:
        halves = chosen[:, : n // 2] ^ chosen[:, n // 2 : n // 2 * 2]
        chosen = torch.cat([halves, chosen[:, n - 1 :]], dim=1) if n % 2 else halves
    return chosen.sum(1)


def _in_planes(odd: Tensor, cells: int) -> Tensor:
    """Words of cells [rows, W, count] -> planes [count, W], a row behind the other."""
    size, each = min(cells, WORD), max(1, WORD // cells)
    rows = F.pad(odd.permute(2, 0, 1).flatten(1), (0, -len(odd) % each))
    return (rows.view(len(rows), -1, each) << torch.arange(0, WORD, size, device=odd.device)).sum(-1)


@kernel(bindings.read_exponential)
def read_exponential(
    x: Tensor, table: Tensor, opened: Tensor, numbers: Tensor, start: int, bits: int, low: int, drop: int = 0
) -> Tensor:
    """As `exp` has it above. Of the cells all but the last few are 0: only those that stand there are asked for."""
    at, rows = Place(start, bits, low, drop), len(table)
    _, rest = at.parts(x - start)
    total, number = torch.zeros_like(x), numbers[..., 0, 0].long()
    for row in range(rows):
        e = plane_by_run(opened[row], x.numel(), 1).view(x.shape)
        chosen = e * number + (1 - 2 * e) * numbers[..., 1 + row, 0]
        cell = torch.full_like(x, at.cells - rows + row)
        total += chosen * between(table, at.cells, cell, rest, at.fine)
    return total
