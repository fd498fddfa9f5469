"""Public tables, read where a secret says: piece by piece, what no one polynomial is.

lookup: the table [cells, degree + 1] has a row of coefficients, ascending, for each cell of 2^low units: cell j begins
at start + j 2^low. The result is that of the row's polynomial at the place within the cell, of which the `drop` lowest
bits are not read:

    f = low - drop,   t = (x - start) / 2^drop modulo 2^(bits - drop),   j = t >> f,   v = t - j 2^f
    result = sum_d table[j, d] v^d 2^(f (degree - d))

So a table of reals at scale s, in units of a cell, gives results at scale s + f degree. Parties know the high bits of
a masked x up to a carry: they may read the next place, and the row above, at v - 2^f. A table must allow for both.
All tables that are read on one opening see the same carry into the cell; the reference takes none.

reached: whether any of x [..., n] lies in a cell or above it, as 0 or 1: [..., cells], each of x up to a carry of its
own; where there is a second argument [..., n], which is public, of those at which it is not 0. Of more than 20 x,
parties miss one cell in 2^20.

exp: e^x times 2^(fraction + the table's scale), e^x being what the table says at the start of x's cell, times
e^(rate v / 2^f). Its rows [rows, points + 1] are of the last cells, at equal distances up to the cell's end; in cells
before these e^x is 0. Parties have it with an error of e^rate 2^-fraction or a unit of the table, whichever is larger.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .operation import SHARED, Attributes, Bits, Operation, Reference


def _lookup(
    x: Tensor, table: Tensor, start: int, bits: int, low: int, drop: int, carries: tuple[int, int] = (0, 0)
) -> Tensor:
    """`carries`: 1 where the bits below carry, into what is read of the place, and from there into the cell."""
    fine = low - drop
    past = (x - start & (1 << bits) - 1) + carries[0] * ((1 << drop) - 1) >> drop
    cell, place = past >> fine, past & (1 << fine) - 1
    above = carries[1] * ((1 << fine) - 1) + place >> fine
    rows, place = table[cell + above & (1 << bits - low) - 1], place - (above << fine)
    result, degree = rows[..., -1], table.shape[-1] - 1
    for power in range(degree - 1, -1, -1):
        result = result * place + (rows[..., power] << (fine * (degree - power)))
    return result


def _on_reals(x: Tensor, table: Tensor, start: float, width: float, beyond: bool, power: float) -> Tensor:
    """Beyond the table it begins anew, as it does for parties."""
    past = (x - start) / width
    cell = past.floor()
    rows, place = table[cell.long() % table.shape[0]], past - cell
    result = rows[..., -1]
    for degree in range(table.shape[-1] - 2, -1, -1):
        result = result * place + rows[..., degree]
    return result


MOST_CHOICES = 1 << 16  # x of a row, times words of cells: parties choose their parities by 24 words for each


def _reached(x: Tensor, keep: Tensor | None = None, *, start: int, bits: int, low: int) -> Tensor:
    if not x.dim() or not x.numel() or x.shape[-1] * max(1, 1 << bits - low >> 6) > MOST_CHOICES:
        raise ValueError(f"reached: no cells are found of {x.shape[-1] if x.dim() else 0:,} numbers a row")
    return _any_from((x - start & (1 << bits) - 1) >> low, keep, 1 << bits - low).to(x.dtype)


def _reached_by_reals(x: Tensor, keep: Tensor | None = None, *, start: float, width: float, cells: int) -> Tensor:
    return _any_from(((x - start) / width).floor() % cells, keep, cells).to(x.dtype)


def _any_from(cell: Tensor, keep: Tensor | None, cells: int) -> Tensor:
    reached = cell.unsqueeze(-1) >= torch.arange(cells, device=cell.device)
    return (reached if keep is None else reached & keep.expand(cell.shape).bool().unsqueeze(-1)).any(-2)


def between(table: Tensor, cells: int, cell: Tensor, place: Tensor, fine: int) -> Tensor:
    """What a table [rows, points + 1] says at a place: of the last cells a row each, of all others 0; on the line
    between two points. Integers, rounded down."""
    rows, points = table.shape[0], table.shape[1] - 1
    step = fine - (points.bit_length() - 1)
    row, point = cell - (cells - rows), place >> step
    clamped = row.clamp(min=0)
    left, right = table[clamped, point], table[clamped, point + 1]
    return torch.where(row < 0, 0, left + ((right - left) * (place & (1 << step) - 1) >> step))


MOST_ROWS = 8  # of a table of exponentials: each is a number from the dealer, of every x


def _exp(x: Tensor, table: Tensor, start: int, bits: int, low: int, drop: int, rate: float, fraction: int) -> Tensor:
    if table.dim() != 2 or not 0 < table.shape[0] <= min(MOST_ROWS, 1 << bits - low) or table.shape[1] < 2:
        raise ValueError(f"exp: a table of exponentials has 1 to {MOST_ROWS} rows, and no more than there are cells")
    fine = low - drop
    past = (x - start & (1 << bits) - 1) >> drop
    return between(table, 1 << bits - low, past >> fine, past & (1 << fine) - 1, fine) << fraction


def _exp_of_reals(x: Tensor, table: Tensor, start: float, width: float, cells: int, domain: float) -> Tensor:
    # As `between`, of reals.
    past = (x - start) / width
    cell, points = past.floor(), table.shape[1] - 1
    row = cell.long() % cells - (cells - table.shape[0])
    place = (past - cell) * points
    point = place.floor().clamp(max=points - 1)
    clamped = row.clamp(min=0)
    left, right = table[clamped, point.long()], table[clamped, point.long() + 1]
    return torch.where(row < 0, 0.0, left + (right - left) * (place - point))


def _demand(bits: Bits, attributes: Attributes) -> int:
    bits.compares = attributes["bits"]
    return int(attributes["bits"])


def _problem(attributes: Attributes) -> str:
    numbers = [attributes.get(name, 0) for name in ("drop", "low", "bits", "fraction", "start")]
    if not all(type(n) is int for n in numbers):
        return "a table with a place that is no whole number"
    rate = attributes.get("rate", 1.0)
    if not isinstance(rate, int | float) or not 0 < rate < 64:  # of a cell: its numbers are e^-rate apart
        return "a table of exponentials with a rate that no table has"
    drop, low, bits, fraction, _ = numbers
    if not 0 <= drop <= low <= bits < 63 or not 0 <= fraction < 63:
        return "a table read with a number of bits that no table has"
    return "" if bits - low <= 16 else "a table of more than 65,536 cells"


def _limit(width: int, attributes: Attributes) -> float:
    start = attributes["start"]
    return float(max(-start, start + (1 << attributes["bits"]) - (1 << attributes["low"])))


def _table(name: str, compute: Reference, real: Reference, **facts: Any) -> Operation:
    return Operation(
        name,
        SHARED,
        compute,
        real,
        opened=True,
        costly=True,
        scales=name,
        check=_problem,
        demand=_demand,
        limit=_limit,
        **facts,
    )


lookup = _table("lookup", _lookup, _on_reals, shared=1)
reached = _table("reached", _reached, _reached_by_reals, shared=1)
exp = _table("exp", _exp, _exp_of_reals, shared=1)
