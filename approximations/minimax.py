"""Weighted minimax polynomials by Remez' exchange on a dense grid. Numpy only; the interval is any [low, high]."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Function = Callable[[np.ndarray], np.ndarray]
_POINTS = 1001  # of the grid that errors are measured on


def minimax(
    target: Function, degree: int, low: float, high: float, *, weight: Function | None = None
) -> tuple[list[float], float]:
    """The polynomial P of the given degree that minimises E = max over [low, high] of weight(x) |target(x) - P(x)|.

    Returns (ascending coefficients in x, E). E is measured on the grid, after the fact. The basis is Chebyshev's while
    fitting, for conditioning. E. Remez, "Sur le calcul effectif des polynomes d'approximation", 1934.
    """
    t = -np.cos(np.pi * np.arange(_POINTS) / (_POINTS - 1))  # in [-1, 1], dense at the ends
    x = low + (high - low) * (t + 1) / 2
    wanted = np.asarray(target(x), dtype=np.float64)
    weights = np.ones_like(x) if weight is None else np.asarray(weight(x), dtype=np.float64)
    weights = np.maximum(weights, 1e-9 * weights.max())  # a zero weight has no place in the exchange
    basis = np.polynomial.chebyshev.chebvander(t, degree)
    # Start from the extrema of a Chebyshev polynomial, laid over the points whose weight is not negligible.
    usable = np.flatnonzero(weights > 1e-3 * weights.max())
    spread = (1 - np.cos(np.pi * np.arange(degree + 2) / (degree + 1))) / 2
    reference = usable[np.round(spread * (len(usable) - 1)).astype(int)]
    signs = (-1.0) ** np.arange(degree + 2)
    best = (np.inf, np.zeros(degree + 1))
    for _ in range(40):
        solved = np.linalg.solve(np.c_[basis[reference], signs / weights[reference]], wanted[reference])
        error = weights * (wanted - basis @ solved[:-1])
        largest = float(np.abs(error).max())
        if largest < best[0]:
            best = (largest, solved[:-1])
        if largest <= abs(solved[-1]) * (1 + 1e-4):
            break
        exchanged = _alternation(error, degree + 2)
        if exchanged is None:  # the target is a polynomial up to rounding: nothing left to gain
            break
        reference = exchanged
    in_t = np.polynomial.Polynomial(np.polynomial.chebyshev.cheb2poly(best[1]))
    in_x = in_t(np.polynomial.Polynomial([-(high + low) / (high - low), 2 / (high - low)]))
    # Ten digits are far below any error here, and keep the last bits of LAPACK out of a plan's hash.
    return [round(float(c), 10) for c in in_x.coef] + [0.0] * (degree + 1 - len(in_x.coef)), best[0]


def _alternation(error: np.ndarray, count: int) -> np.ndarray | None:
    """Indices of ``count`` neighbouring extrema of alternating sign, the largest among them included."""
    sign = np.where(error < 0, -1, 1)
    runs = np.split(np.arange(len(error)), np.flatnonzero(np.diff(sign)) + 1)
    peaks = [int(run[np.argmax(np.abs(error[run]))]) for run in runs]
    while len(peaks) > count:
        peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
    return np.array(peaks) if len(peaks) == count else None


def balance(rising: Callable[[float], float], falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising and a falling error meet in [low, high], by bisection: the best place for a cut."""
    for _ in range(16):
        middle = (low + high) / 2
        if rising(middle) < falling(middle):
            low = middle
        else:
            high = middle
    return (low + high) / 2
