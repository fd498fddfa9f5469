"""Reciprocal, as torch's own and as the division of a softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .goldschmidt import SOURCE, TOLERANCE, fit_steps, iterate, require_positive, step_constants
from .lowdegree import LOW_DEGREE, power_fit
from .minimax import minimax
from .overrides import Overrides, define_elementwise
from .plan import DENOMINATOR
from .power_table import cost_of_reciprocals
from .primitives import polynomial, unless_known
from .registry import Approximation, Constants, Range, approximation


def _reciprocal(overrides: Overrides, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return overrides.elementwise("reciprocal", input, lambda: func(input, *args, **kwargs))


def _divided_by(overrides: Overrides, func: Any, input: Tensor, other: Any) -> Tensor:
    """number / x, by the name that x has for it."""
    if not input.is_floating_point():
        return func(input, other)
    return _reciprocal(overrides, torch.reciprocal, input) * other


def _quotient(overrides: Overrides, func: Any, input: Any, other: Any, **kwargs: Any) -> Tensor:
    """x / y. By a square root: times the reciprocal root. By whole numbers: they are counts, of what a mask keeps say,
    which somebody has in the clear."""
    if kwargs or not isinstance(other, Tensor) or not other.is_floating_point():
        return func(input, other, **kwargs)
    squared = overrides.roots[other].of(other) if other in overrides.roots else None
    if squared is not None:
        return input * overrides.elementwise("rsqrt", squared, lambda: torch.rsqrt(squared))
    site = overrides.site("reciprocal")
    if overrides.observer is not None:
        whole = torch.equal(other, other.round())
        overrides.show(site, "reciprocal", torch.zeros_like(other) if whole else other)
    chosen, constants = overrides.approximation("reciprocal", site)
    if chosen.function is None:
        return func(input, other)
    inverse = chosen.function(other, **constants)
    return input * (inverse if chosen.needs_distillation else unless_known(inverse, other, "reciprocal"))


def _divided(overrides: Overrides, func: Any, input: Tensor, other: Any) -> Tensor:
    """x /= y."""
    return input.copy_(_quotient(overrides, torch.div, input, other))


def _fitted_range(seen: Range, widened: Range, whole: Approximation | None) -> Range | None:
    """Within another approximation, the bounds that it keeps by construction. None elsewhere where a number is not
    above 0: it may well be no secret that is divided by; if it is, lowering refuses."""
    low, high = widened
    if whole is None:
        return None if seen[0] <= 0 else widened
    low = max(low, whole.least)
    return low, max(low, seen[1] if whole.most else high)  # no more than that is possible


define_elementwise(
    "reciprocal",
    torch.reciprocal,
    answers={
        torch.reciprocal: _reciprocal,
        Tensor.reciprocal: _reciprocal,
        Tensor.__rdiv__: _divided_by,
        Tensor.__rtruediv__: _divided_by,
        **dict.fromkeys((torch.div, torch.true_divide, torch.divide, Tensor.div, Tensor.true_divide), _quotient),
        **dict.fromkeys((Tensor.divide, Tensor.__truediv__, Tensor.__div__), _quotient),
        **dict.fromkeys((Tensor.div_, Tensor.__itruediv__, Tensor.__idiv__), _divided),
    },
    known="reciprocal",
    presets={"faithful": "table", "fast": "table", "he": "polynomial"},
    spread=2.0,
    fitted_range=_fitted_range,
)


def divide_within(
    overrides: Overrides, site: str, denominators: Tensor, most: float, within: Range | None = None
) -> Tensor:
    """1 / denominators, for a kind that divides; ``site``: its own call. `most`: the largest denominator there can be;
    0: not known. `within`: both bounds, where they are known; then nothing is calibrated."""
    site += DENOMINATOR
    if within is not None:
        places, a_round = denominators.numel(), overrides.plan.a_round
        many = _cost_of_steps(*within, places, a_round) < cost_of_reciprocals(*within, places, a_round)
        divide = overrides.fitted("reciprocal", within, many, level=a_round / places, beyond=1.0)
        return denominators.reciprocal() if divide is None else divide(denominators)
    overrides.show(site, "reciprocal", denominators)
    if most:
        overrides.show(site, "reciprocal", torch.full((1,), most))
    chosen, fitted = overrides.approximation("reciprocal", site)
    return denominators.reciprocal() if chosen.function is None else chosen.function(denominators, **fitted)


def fit_reciprocal(low: float, high: float, tolerance: float = TOLERANCE) -> Constants:
    """Constants of `reciprocal` for [low, high]: the start whose degree (1 to 3) leaves the fewest steps."""
    require_positive(low, high)
    exponent = math.ceil(math.log2(high))
    start, steps = _fit_reciprocal(low * 2.0**-exponent, high * 2.0**-exponent, tolerance)
    return step_constants(exponent, start, steps)


@cache
def _fit_reciprocal(low: float, high: float, tolerance: float) -> tuple[tuple[float, ...], list[tuple[float, float]]]:
    high = max(high, low * (1 + 1e-6))
    y = np.geomspace(low, high, 1001)
    candidates = []
    for degree in (1, 2, 3):
        # The weight makes the error relative, that is the distance of q from 1.
        start, _ = minimax(lambda v: 1 / v, degree, low, high, weight=lambda v: v)
        q = y * np.polynomial.polynomial.polyval(y, start)
        candidates.append((tuple(start), fit_steps(1, float(q.min()), float(q.max()), tolerance)))
    return min(candidates, key=lambda pair: len(pair[1]))  # the first, of lowest degree, among equals


def _cost_of_steps(low: float, high: float, places: int, a_round: float) -> float:
    """What `goldschmidt` costs, as numbers of the dealer's."""
    exponent = math.ceil(math.log2(high))
    steps = len(_fit_reciprocal(low * 2.0**-exponent, high * 2.0**-exponent, TOLERANCE)[1])
    return 10 * steps * places + a_round * (3 + 2 * steps)


@approximation("reciprocal", "goldschmidt", source=SOURCE, fit=fit_reciprocal, default_range=(0.5, 1024.0))
def reciprocal(x: Tensor, *, exponent: float, start: list[float], offsets: list[float], slopes: list[float]) -> Tensor:
    """1/x for x in the fitted range."""
    y = x * 2.0**-exponent
    first = polynomial(y, start)
    return iterate(first, y * first, offsets, slopes, lambda a, b: [0.0, a, b]) * 2.0**-exponent


@approximation(
    "reciprocal", "polynomial", needs_distillation=True, source=LOW_DEGREE, fit=power_fit(1.0), default_range=(0.5, 8.0)
)
def low_degree_reciprocal(x: Tensor, *, exponent: float, coefficients: Sequence[float]) -> Tensor:
    """1/x for x in the fitted range."""
    return polynomial(x * 2.0**-exponent, coefficients) * 2.0**-exponent
