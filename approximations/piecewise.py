"""Functions that are simple far from zero: polynomials in x^2 inside |x| < cut, the known tail outside.

An even part needs no absolute value: it is a polynomial in u = (x 2^-e)^2, where e puts u in [0, 1] so that the
coefficients are of order one and survive fixed point. The bits |x| < cut come from comparing x itself with -cut and
cut, so all thresholds share one opening, and x^2 shares it too. Outside its cut a polynomial gives garbage, which
meets an exact 0 bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from torch import Tensor

from .minimax import balance, minimax
from .primitives import below, polynomial
from .registry import Constants

Real = Callable[[np.ndarray], np.ndarray]


def nested(x: Tensor, cuts: Sequence[float]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Bits of |x| < cut, one tensor per cut, then the bits x < last cut and x < -last cut."""
    upper, lower = [below(x, c) for c in cuts], [below(x, -c) for c in cuts]
    return [u - n for u, n in zip(upper, lower, strict=True)], upper[-1], lower[-1]


def by_piece(
    u: Tensor, within: Sequence[Tensor], pieces: Sequence[Sequence[float]], cuts: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """(bit, value) pairs whose products add up to piece i in ring i: values are differences of neighbouring pieces.

    The bits of nested intervals have fewer terms than those of rings, and a product costs one correlation per term.
    Beyond its cut an inner piece is large, and would cost fractional bits if its values there mattered.
    """
    steps = [[a - b for a, b in zip(p, q, strict=True)] for p, q in pairwise(pieces)]
    scale = 2.0 ** -exponent(cuts[-1])
    domains = [(cut * scale) ** 2 for cut in cuts]
    values = [polynomial(u, piece, domain=d) for piece, d in zip([*steps, pieces[-1]], domains, strict=True)]
    return list(zip(within, values, strict=True))


def normalised_square(x: Tensor, last_cut: float) -> Tensor:
    """(x 2^-e)^2 with 2^e the least power of two that is no smaller than the last cut."""
    y = x * 2.0 ** -exponent(last_cut)
    return y * y


def exponent(last_cut: float) -> int:
    """The e of `normalised_square`."""
    return math.ceil(math.log2(last_cut))


def gated(x: Tensor, cuts: Sequence[float], pieces: Sequence[Sequence[float]]) -> Tensor:
    """x/2 + even(x) inside the last cut, 0 below it, x above it: the shape of GELU and SiLU.

    even(x) = pieces[i](u) in ring i. x times (1 - (bits)/2) does not wait for the polynomials.
    """
    within, upper, lower = nested(x, cuts)
    result = x * (1.0 - 0.5 * (upper + lower))
    for bit, value in by_piece(normalised_square(x, cuts[-1]), within, pieces, cuts):
        result = result + bit * value
    return result


def saturating(x: Tensor, cuts: Sequence[float], pieces: Sequence[Sequence[float]]) -> Tensor:
    """x Q(u) inside the last cut, -1 below it, 1 above it: the shape of tanh."""
    within, upper, lower = nested(x, cuts)
    result = 1.0 - upper - lower
    for bit, value in by_piece(normalised_square(x, cuts[-1]), within, pieces, cuts):
        result = result + (bit * x) * value
    return result


@cache
def fit_pieces(
    inside: Real,
    tail: Callable[[float], float],
    degree: int,
    pieces: int,
    *,
    odd: bool,
    search: tuple[float, float],
    focus: float = 0.0,
) -> tuple[tuple[float, ...], tuple[tuple[float, ...], ...], float]:
    """Cuts and coefficients of least error for a number of pieces of a degree in u.

    inside: the even part, or the odd function itself if ``odd``, of x >= 0; tail(cut): the error made outside.
    With focus f, errors inside weigh 1 + f exp(-x^2/2): less is lost near zero, where activations are, more elsewhere.
    The last cut is where the tail's error equals the polynomials'; an inner cut is where both its sides are equal.
    Returns (cuts, coefficients by piece, largest weighted error).
    """

    def fit(start: float, end: float, last: float) -> tuple[list[float], float]:
        scale = 2.0 ** exponent(last)

        def target(u: np.ndarray) -> np.ndarray:
            x = scale * np.sqrt(np.maximum(u, 1e-12))
            return inside(x) / x if odd else inside(x)

        def weight(u: np.ndarray) -> np.ndarray:
            x = scale * np.sqrt(np.maximum(u, 0.0))
            return (1 + focus * np.exp(-x * x / 2)) * (x if odd else 1.0)

        return minimax(target, degree, (start / scale) ** 2, (end / scale) ** 2, weight=weight)

    def knots(last: float) -> list[float]:
        if pieces == 1:
            return [last]
        middle = balance(lambda c: fit(0.0, c, last)[1], lambda c: fit(c, last, last)[1], 0.2 * last, 0.9 * last)
        return [round(middle, 4), last]

    def fits(last: float) -> list[tuple[list[float], float]]:
        cuts = knots(last)
        return [fit(start, end, last) for start, end in zip([0.0, *cuts], cuts, strict=False)]

    last = round(balance(lambda c: max(e for _, e in fits(c)), tail, *search), 4)
    found = fits(last)
    error = max(tail(last), *(e for _, e in found))
    return tuple(knots(last)), tuple(tuple(c) for c, _ in found), error


def as_constants(cuts: Sequence[float], pieces: Sequence[Sequence[float]]) -> Constants:
    """What a plan stores: the cuts, and the coefficients of the inner and (perhaps) the outer piece."""
    names = ("inner", "outer")
    return {"cuts": list(cuts), **{name: list(piece) for name, piece in zip(names, pieces, strict=False)}}


def as_pieces(inner: Sequence[float], outer: Sequence[float] | None) -> list[Sequence[float]]:
    """The coefficients by piece, from what a plan stores."""
    return [inner] if outer is None else [inner, outer]
