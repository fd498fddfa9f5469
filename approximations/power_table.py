"""Reciprocals and reciprocal roots from tables: rounds that Goldschmidt's steps take are numbers that a dealer makes.

A power of y changes by about as much from y to 2 y wherever y is, so equal cells are too fine at the top of a range, or
too coarse at its end. So there are levels, each a table whose cells are a fixed factor finer than those of the level
above. A row says the function on its cell, and on the cell before. The first rows of a level would be too coarse: they
are 0, and a bit, read at the same place, says that the next level counts:

    f(y) = table_0(y) + bit_0(y) (table_1(y) + bit_1(y) (...))

Below the fitted range the result is that of its end. Far above it a table begins anew, and the result is wrong without
a warning: tables reach `BEYOND` times as far as the range, which is widened before the fit. Where y is a sum over n,
the same tables are read at the sum over a power of two: a place that is up to `STRETCH` times as high or as low.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from torch import Tensor

from .errors import CalibrationError
from .goldschmidt import TOLERANCE, require_positive
from .normalisation import affine, centred
from .primitives import levels as by_levels
from .registry import A_ROUND, Constants, approximation

BEYOND, STRETCH = 2.0, 2.0**0.5
SOURCE = "Blindformer: lookup of polynomials"
_A_LEVEL = 1500.0
MANY, GROWN = 128, 4  # places that have constants of their own; numbers out of keys, made in the time that one takes


def fit_reciprocal(
    low: float,
    high: float,
    tolerance: float = TOLERANCE,
    level: float = 200.0,
    beyond: float = BEYOND,
) -> Constants:
    """Constants of `reciprocal` for [low, high]. `level`: numbers of the dealer's that one round less is worth.
    `beyond`: 1 if all places are within by construction, and are read as they are."""
    return {**_fit(1.0, low, high, tolerance, level, beyond)}


def fit_rsqrt(low: float, high: float, tolerance: float = TOLERANCE, level: float = _A_LEVEL) -> Constants:
    """Constants of `rsqrt` for [low, high]; the same."""
    return {**_fit(0.5, low, high, tolerance, level)}


def _fit(
    power: float,
    low: float,
    high: float,
    tolerance: float,
    level: float,
    beyond: float = BEYOND,
) -> dict[str, float]:
    """Cells, degree and levels of the least rounds and numbers. `first`: cells of a level that the next one covers."""
    _, *chosen = _cheapest(power, low, high, tolerance, level, beyond)
    return dict(zip(("levels", "top", "cells", "first", "degree"), map(float, chosen), strict=True))


@cache
def _cheapest(
    power: float, low: float, high: float, tolerance: float, level: float, beyond: float
) -> tuple[float, ...]:
    """What these constants cost, as numbers of the dealer's for a place, and the constants."""
    require_positive(low, high)
    fits, stretch = [], STRETCH if beyond > 1 else 1.0
    for degree in (1, 2, 3):
        for first in (4, 8, 16, 32):
            if _error(power, first - 1, degree) > tolerance:
                continue
            for cells in (64, 128, 256, 512, 1024):
                top = math.ceil(math.log2(beyond * high * cells / (cells - 1)))
                least = (first - 1) / cells * 2.0**top
                levels = 1 + max(0, math.ceil(math.log(least * stretch / low, cells / first)))
                numbers = levels * (_numbers(cells * (degree + 1)) + _numbers(cells))
                fits.append((numbers + level * math.ceil(math.log2(2 * levels)), levels, top, cells, first, degree))
    if not fits or min(fits)[1] > 12:
        raise CalibrationError(f"a division from {low:g} to {high:g} takes too many tables: calibrate again")
    return min(fits)


def cost_of_reciprocals(low: float, high: float, places: int, a_round: float) -> float:
    """What tables of these reciprocals cost, as numbers of the dealer's. `a_round`: those that a round is worth."""
    return places * _cheapest(1.0, low, high, TOLERANCE, a_round / places, 1.0)[0]


def _numbers(count: int) -> float:
    """What a dealer sends of so many numbers of a place, or keys they grow from, and what growing them takes."""
    return min(count, 16 + 4 * math.log2(count)) + count / GROWN


@cache
def _roots_of_many(
    places: int, top: float, levels: float, cells: float, first: float, degree: float
) -> dict[str, float]:
    """What suits so many places at once, for the same range and no less exact."""
    low, high = (first - 1) / cells * 2.0**top * (first / cells) ** (levels - 1), 2.0**top * 63 / 64
    return _fit(0.5, low, high, _error(0.5, int(first) - 1, int(degree)), A_ROUND / places, 1.0)


def _roots(y: Tensor, **constants: float) -> Tensor:
    """y^-1/2 for y in the fitted range."""
    return by_table(y, 0.5, **(constants if y.numel() < MANY else _roots_of_many(y.numel(), **constants)))


@cache
def _row(power: float, cell: int, degree: int) -> tuple[float, ...]:
    """Coefficients in v of (cell + v)^-power for v in [-1, 1]: interpolated at Chebyshev's points."""
    v = np.cos(np.pi * (np.arange(degree + 1) + 0.5) / (degree + 1))
    return tuple(np.polynomial.polynomial.polyfit(v, (cell + v) ** -power, degree))


@cache
def _error(power: float, cell: int, degree: int) -> float:
    """The largest relative error of a row."""
    v = np.linspace(-1, 1, 201)
    exact = (cell + v) ** -power
    return float(np.abs(np.polynomial.polynomial.polyval(v, _row(power, cell, degree)) / exact - 1).max())


def by_table(y: Tensor, power: float, top: float, levels: float, cells: float, first: float, degree: float) -> Tensor:
    """y^-power for y in the fitted range."""
    count, begin, last = int(cells), int(first) - 1, int(levels) - 1
    widths = [2.0**top / cells * (first / cells) ** level for level in range(last + 1)]
    nothing = [0.0] * int(degree)
    tables = []
    for level, width in enumerate(widths):
        below = [float(begin) ** -power if level == last else 0.0, *nothing]
        rows = [_row(power, cell, int(degree)) if cell >= begin else below for cell in range(count)]
        tables.append([[c * width**-power for c in row] for row in rows])
    return by_levels(y, tables, widths, begin, -power)


@approximation(
    "reciprocal", "table", source=SOURCE, fit=fit_reciprocal, default_range=(0.5, 1024.0), many="goldschmidt"
)
def reciprocal(x: Tensor, *, top: float, levels: float, cells: float, first: float, degree: float) -> Tensor:
    """1/x for x in the fitted range."""
    return by_table(x, 1.0, top, levels, cells, first, degree)


@approximation("rsqrt", "table", source=SOURCE, fit=fit_rsqrt, default_range=(2.0**-8, 2.0**8))
def rsqrt(x: Tensor, *, top: float, levels: float, cells: float, first: float, degree: float) -> Tensor:
    """1/sqrt(x) for x in the fitted range."""
    return _roots(x, top=top, levels=levels, cells=cells, first=first, degree=degree)


@approximation("layer_norm", "table", source=SOURCE, fit=fit_rsqrt, default_range=(2.0**-8, 2.0**8))
def layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    top: float,
    levels: float,
    cells: float,
    first: float,
    degree: float,
) -> Tensor:
    """(x - mean) rsqrt(variance + eps) weight + bias; the fitted range is that of variance + eps."""
    difference, variance = centred(x, shape, eps)
    inverse = _roots(variance, top=top, levels=levels, cells=cells, first=first, degree=degree)
    return affine(difference * inverse, weight, bias)
