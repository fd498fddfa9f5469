"""Reciprocal and reciprocal square root by Goldschmidt's iteration, every step fitted to the calibrated range.

x is scaled by a power of two (free on secrets) to y <= 1. Then p, which goes to y^(-1/root), and q = y p^root, which
goes to 1, are multiplied step by step:

    m = a + b q        p <- p m        q <- q m^root            root = 1 reciprocal, 2 reciprocal square root

Goldschmidt's (a, b) is (2, -1) or (3/2, -1/2), right only near q = 1. Far from it, it gains a factor 2 (1.5) a step.
Here (a, b) is the pair for which the interval that q is known to lie in shrinks most, in closed form, as in the
composite polynomials of Chen and Chow (2014) and Polar Express (arXiv:2505.16932): up to 4 (2.6) a step. p and q of
the next step read the same opening, so a step costs one.

Below the fitted range the result is too small; above it the sign may flip: the range is widened before the fit, and
`check` says when it is left. Fixed point bounds what can be had: with f fractional bits y is only known to 2^-f / y, so
at 16 bits a range of 1 : 1000 is good to 1.6% at its low end if y is rounded to 16 bits, and to 1e-5 if y keeps the
bits of the unscaled x. The same holds for q in the first steps: it pays to carry more bits there.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from .errors import CalibrationError
from .primitives import polynomial
from .registry import Constants

TOLERANCE = 2.0**-14
"""Relative error that the fits aim at, over the whole range."""

SOURCE = "R. E. Goldschmidt, MIT thesis, 1964; fitted steps"


def iterate(
    p: Tensor, q: Tensor, offsets: list[float], slopes: list[float], next_q: Callable[[float, float], list[float]]
) -> Tensor:
    """The steps p <- p (a + b q), written p <- c p - p q with c = -a/b.

    The factors -b that this leaves out are put into p once. q starts as a product with the rounded p, and not as a
    polynomial of its own: an error of p corrects itself only as long as q shows it.
    """
    p = math.prod(-b for b in slopes) * p
    for i, (a, b) in enumerate(zip(offsets, slopes, strict=True)):
        p = (-a / b) * p - p * q
        if i + 1 < len(slopes):
            q = polynomial(q, next_q(a, b))
    return p


def step_constants(exponent: int, start: tuple[float, ...], steps: list[tuple[float, float]]) -> Constants:
    return {
        "exponent": float(exponent),
        "start": list(start),
        "offsets": [a for a, _ in steps],
        "slopes": [b for _, b in steps],
    }


def require_positive(low: float, high: float) -> None:
    if not 0.0 < low <= high < math.inf:
        raise CalibrationError(
            f"a division needs a range of positive numbers, not [{low:g}, {high:g}]: calibrate again"
        )


def fit_steps(root: int, low: float, high: float, tolerance: float, least: int = 0) -> list[tuple[float, float]]:
    """(a, b) by step until q^(1/root), known to lie in [low, high], is within the tolerance of 1.

    With s = q^(1/root), a step maps s to s (a + b s^root). Least deviation from 1 means equal values at both ends and
    as much above 1 in between as these are below.
    """
    steps: list[tuple[float, float]] = []
    while max(1 - low, high - 1) > tolerance or len(steps) < least:
        if root == 1:
            ends, peak, total = low * high, (low + high) ** 2 / 4, low + high
        else:
            total = low * low + low * high + high * high
            ends, peak = low * high * (low + high), 2 * (total / 3) ** 1.5
        slope = round(-2 / (ends + peak), 10)
        steps.append((round(-slope * total, 10), slope))
        low, high = -slope * ends, -slope * peak
        if len(steps) > 40:
            raise CalibrationError("a division does not converge on its calibrated range: calibrate on cleaner inputs")
    return steps
