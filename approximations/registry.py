"""The approximations that exist: found by importing every file of this folder once, looked up by kind and name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .errors import PlanError

KINDS = ("gelu", "layer_norm", "reciprocal", "rsqrt", "sigmoid", "silu", "softmax", "tanh")
"""What can be approximated. ``rsqrt`` covers every RMS normalisation; ``reciprocal`` is softmax's division too."""

EXACT = "exact"
"""The name, valid for every kind, that leaves torch's own function in place (it does not run on secrets)."""

Constants = dict[str, float | list[float]]


@dataclass(frozen=True)
class Approximation:
    """One way to compute one kind of function.

    function            the code, ordinary PyTorch on the primitives; None for ``exact``
    needs_distillation  the function is not close to the original: a student has to be trained with it
    comparisons         thresholds compared with (they share one opening when they compare the same tensor)
    source              where the formula comes from
    error               largest absolute error over ``domain`` against float64, None where not meaningful
    domain              the interval the error is stated on
    fit                 constants from a (widened) calibrated range: ``fit(low, high, **options)``
    default_range       the range assumed when nothing was calibrated
    least, most         bounds that a softmax's denominators keep by construction, `most` for each key (0: none)
    """

    kind: str
    name: str
    function: Callable[..., Any] | None
    needs_distillation: bool = False
    comparisons: int = 0
    source: str = ""
    error: float | None = None
    domain: tuple[float, float] | None = None
    fit: Callable[..., Constants] | None = None
    default_range: tuple[float, float] = (-8.0, 8.0)
    least: float = 0.0
    most: float = 0.0

    def options(self) -> tuple[str, ...]:
        """The options a plan may set: those of the fit or, without one, the keyword constants of the function."""
        if self.fit is not None:
            return tuple(inspect.signature(self.fit).parameters)[2:]
        return () if self.function is None else _keywords(self.function)

    def constants(self, range_: tuple[float, float] | None, options: Mapping[str, float]) -> Constants:
        """The function's constants for a range (None: the default one)."""
        if self.fit is None:
            return dict(options)
        return self.fit(*(range_ or self.default_range), **options)

    def accepts(self, constants: Constants) -> bool:
        """Whether these constants, of a stored fit say, are this function's."""
        return self.function is not None and set(constants) <= set(_keywords(self.function))


def _keywords(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)


_found: dict[tuple[str, str], Approximation] = {(kind, EXACT): Approximation(kind, EXACT, None) for kind in KINDS}


def approximation(kind: str, name: str, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as approximation ``name`` of ``kind``; ``facts`` are `Approximation`'s fields.

    Constants that a fit or a plan's options may set are the function's keyword-only parameters.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if kind not in KINDS:
            raise PlanError(f"unknown kind {kind!r} for approximation {name!r}: use one of {', '.join(KINDS)}")
        if (kind, name) in _found:
            raise PlanError(f"approximation {name!r} of {kind} is registered twice: rename one of them")
        _found[kind, name] = Approximation(kind, name, function, **facts)
        return function

    return register


@cache
def _scan() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f".{module.name}", __package__)


def choices(kind: str | None = None) -> list[Approximation]:
    """Every approximation, of one kind or of all, sorted by kind and name."""
    _scan()
    if kind is not None and kind not in KINDS:
        raise PlanError(f"unknown kind {kind!r}: use one of {', '.join(KINDS)}")
    return [a for (k, _), a in sorted(_found.items()) if kind in (None, k)]


def find(kind: str, name: str) -> Approximation:
    """The approximation ``name`` of ``kind``. A miss is a `PlanError` that lists what exists."""
    known = {a.name: a for a in choices(kind)}
    if name not in known:
        raise PlanError(f"unknown approximation {name!r} of {kind}: use one of {', '.join(known)}")
    return known[name]
