"""Functions that are simple far from zero: a Fourier series inside |x| < cut, the known tail outside.

On [-cut, cut] a smooth even function is nearly a short sum of cosines, an odd one of sines, if the period is longer
than 2 cut: what the sum is between the cut and the period's end is free. On secrets a term is two numbers that a dealer
shares, and no message; a polynomial as good would leave fixed point too few bits. The bits |x| < cut come from
comparing x with -cut and cut, on the opening that the series reads, too. Outside the cut the series meets an exact 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
from torch import Tensor

from .minimax import balance
from .primitives import fourier, sides
from .registry import Constants, approximation

Real = Callable[[np.ndarray], np.ndarray]

PERIODS = tuple(sorted({2.0**e / n for e in range(1, 9) for n in (1, 3, 5, 7)}))  # of `whole_periods`
LARGEST = 256.0  # of coefficients, all together: so much the dealer's roundings are magnified
NEAR = 2.0**-8  # the cut: there a series is nearly as good beyond it, and the tail before it
SOURCE = "Blindformer: least-error Fourier series"


def odd(x: Tensor, cut: float, period: float, terms: Sequence[float]) -> Tensor:
    """Sines."""
    return fourier(x, period, sines=[0.0, *terms], domain=cut)


def gated(x: Tensor, cut: float, within: Tensor) -> Tensor:
    """A function inside the cut, 0 below it, x above it: the shape of GELU and SiLU."""
    inside, above = sides(x, -cut, cut, NEAR)
    return above * x + inside * within


def saturating(x: Tensor, cut: float, odd: Tensor) -> Tensor:
    """An odd function inside the cut, -1 below it, 1 above it: the shape of tanh."""
    inside, above = sides(x, -cut, cut, NEAR)
    return 2.0 * above - 1.0 + inside * (1.0 + odd)


def add_series(
    kind: str,
    inside: Real,
    tail: Callable[[float], float],
    *,
    odd: bool,
    search: tuple[float, float],
    terms: int = 8,
    error: float,
    domain: tuple[float, float],
) -> Callable[..., Constants]:
    """The approximation `fourier` of an elementwise kind: x/2 and an even part, or an odd function, of so many terms.
    Returns its fit. ``inside``, ``tail``, ``search``: see `fit_series`; ``error``: with the default terms."""

    def fit(low: float, high: float, terms: float = terms) -> Constants:
        """The cut and the series of least error. The range does not enter: the tails are known outside the cut."""
        return fit_series(inside, tail, int(terms), odd=odd, search=search)

    facts = {"comparisons": 2, "source": SOURCE, "error": error, "domain": domain, "fit": fit}
    approximation(kind, "fourier", **facts)(saturating_series if odd else gated_series)
    return fit


def gated_series(x: Tensor, *, cut: float, period: float, terms: list[float]) -> Tensor:
    """x/2 and an even series inside the cut."""
    return gated(x, cut, fourier(x, period, cosines=terms, domain=cut, slope=0.5))


def saturating_series(x: Tensor, *, cut: float, period: float, terms: list[float]) -> Tensor:
    """A sum of sines inside the cut, -1 below it, 1 above it."""
    return saturating(x, cut, odd(x, cut, period, terms))


@cache
def fit_series(
    inside: Real, tail: Callable[[float], float], terms: int, *, odd: bool, search: tuple[float, float]
) -> Constants:
    """Constants of least error for a number of terms, a constant one not counted.

    inside: the even part, or the odd function itself if ``odd``, of x >= 0; tail(cut): the error made outside, which
    equals that inside at the cut. `search`: where the cut is.
    """
    candidates = []
    for period in PERIODS:
        low, high = search[0], min(search[1], 0.49 * period)
        if high <= low:
            continue
        fit = partial(_least_error, inside, terms, odd, period)
        cut = round(balance(lambda c, fit=fit: fit(c)[1], tail, low, high), 4)
        series, error = fit(cut)
        if sum(map(abs, series)) <= LARGEST:
            candidates.append((max(error, tail(cut)), {"cut": cut, "period": period, "terms": series}))
    return min(candidates, key=lambda item: item[0])[1]


def _least_error(inside: Real, terms: int, odd: bool, period: float, cut: float) -> tuple[list[float], float]:
    """Coefficients, and the largest error on [0, cut]: least squares, with weights that follow the errors (Lawson,
    "Contributions to the theory of linear least maximum approximation", 1961)."""
    x = cut * (1 - np.cos(np.pi * (np.arange(300) + 0.5) / 300)) / 2
    waves = (np.sin if odd else np.cos)(2 * np.pi / period * np.outer(x, np.arange(1 if odd else 0, terms + 1)))
    wanted, weights = inside(x), np.ones_like(x)
    best: tuple[list[float], float] = ([], np.inf)
    for _ in range(25):
        root = np.sqrt(weights)
        series = np.linalg.lstsq(waves * root[:, None], wanted * root, rcond=1e-9)[0]
        errors = np.abs(waves @ series - wanted)
        largest = float(errors.max())
        if largest < best[1]:
            best = ([round(float(c), 8) for c in series], largest)
        weights = weights * (errors / largest + 1e-3)
        weights /= weights.sum()
    return best
