"""What can be approximated (kinds) and how (approximations): found by importing every file of this folder once."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from .errors import PlanError

EXACT = "exact"
"""The name, valid for every kind, that leaves torch's own function in place (it does not run on secrets)."""

FAITHFUL = "faithful"
"""The preset whose choices a plan has where it says nothing."""

A_ROUND = 12000.0
"""Numbers of the dealer's, of all places that are read at once, that one round less is worth on a LAN."""

Constants = dict[str, float | list[float]]
Range = tuple[float, float]


def _as_seen(value: Tensor) -> Tensor:
    return value


def _widened(seen: Range, widened: Range, whole: Approximation | None) -> Range | None:
    return widened


@dataclass(frozen=True)
class FunctionKind:
    """One kind of function that can be approximated, and all that others need to know of it.

    answers       torch's functions -> what answers a call: ``answer(overrides, function, *args, **kwargs)``
    exact         the function of one tensor that errors are stated against; None where it is not elementwise
    layers        classes of transformers that compute f(s x) / s in smaller steps -> s
    presets       preset -> the approximation it chooses; `exact` where a preset is missing
    search        what a search for a cheaper plan tries: names, or a name with options
    operations    ATen operations by which an exported model shows that nothing has approximated it
    limit         magnitude of arguments beyond which a student is penalised; None: never
    spread        of what is divided by: powers of two that values may be from their mean before a student is penalised;
                  None: this kind is not a division
    known         the ATen function that whoever has x in the clear computes instead, if that is close to it
    recorded      the part of the values shown that calibration takes the range of
    fitted_range  (range seen, widened range, approximation of the whole that this is a division in) -> the range to
                  fit to; None: no fit
    """

    name: str
    answers: Mapping[Callable[..., Any], Callable[..., Any]]
    exact: Callable[..., Tensor] | None = None
    layers: Mapping[str, float] = field(default_factory=dict)
    presets: Mapping[str, str] = field(default_factory=dict)
    search: Sequence[Any] = ()
    operations: Sequence[str] = ()
    limit: float | None = None
    spread: float | None = None
    known: str = ""
    recorded: Callable[[Tensor], Tensor] = _as_seen
    fitted_range: Callable[[Range, Range, Approximation | None], Range | None] = _widened

    @property
    def is_division(self) -> bool:
        """Whether it divides: calibration fits it to what it sees behind the other approximations, and a student is
        trained with the exact function, unless the approximation needs distillation."""
        return self.spread is not None

    @property
    def advice(self) -> str:
        """What to do where an exported model still calls it."""
        return f"approximate the model first, or choose a {self.name} in the plan"


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
    features            whether it reads queries and keys, and not their scores; its function gives the constants
    many                the one of its kind that takes fewer numbers and more rounds, where there is one
    """

    kind: str
    name: str
    function: Callable[..., Any] | None
    needs_distillation: bool = False
    comparisons: int = 0
    source: str = ""
    error: float | None = None
    domain: Range | None = None
    fit: Callable[..., Constants] | None = None
    default_range: Range = (-8.0, 8.0)
    least: float = 0.0
    most: float = 0.0
    features: bool = False
    many: str = ""

    def __reduce__(self) -> tuple[Callable[..., Approximation], tuple[str, str]]:
        return find, (self.kind, self.name)  # an approximated model is pickled with the names of what it computes

    def options(self) -> tuple[str, ...]:
        """The options a plan may set: those of the fit or, without one, the keyword constants of the function."""
        if self.fit is not None:
            return tuple(inspect.signature(self.fit).parameters)[2:]
        return () if self.function is None else _keywords(self.function)

    def constants(self, range_: Range | None, options: Mapping[str, float]) -> Constants:
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


_kinds: dict[str, FunctionKind] = {}
_found: dict[tuple[str, str], Approximation] = {}


def define_kind(name: str, **facts: Any) -> None:
    """Make ``name`` a kind; ``facts`` are `FunctionKind`'s fields. For one tensor's function: `define_elementwise`."""
    if name in _kinds:
        raise PlanError(f"kind {name!r} is defined twice: rename one of them")
    _kinds[name] = FunctionKind(name, **{"operations": (name,), **facts})
    _found[name, EXACT] = Approximation(name, EXACT, None)


def approximation(kind: str, name: str, **facts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as approximation ``name`` of ``kind``; ``facts`` are `Approximation`'s fields.

    Constants that a fit or a plan's options may set are the function's keyword-only parameters.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        if kind not in _kinds:
            _scan()  # its file may come later
        if kind not in _kinds:
            raise PlanError(f"unknown kind {kind!r} for approximation {name!r}: use one of {', '.join(sorted(_kinds))}")
        if (kind, name) in _found:
            raise PlanError(f"approximation {name!r} of {kind} is registered twice: rename one of them")
        _found[kind, name] = Approximation(kind, name, function, **facts)
        return function

    return register


@cache
def _scan() -> None:
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f".{module.name}", __package__)


def kinds() -> dict[str, FunctionKind]:
    """Every kind by its name, sorted."""
    _scan()
    return dict(sorted(_kinds.items()))


def find_kind(name: str) -> FunctionKind:
    """The kind of this name. A miss is a `PlanError` that lists what exists."""
    _scan()
    if name not in _kinds:
        raise PlanError(f"unknown kind {name!r}: use one of {', '.join(sorted(_kinds))}")
    return _kinds[name]


def choices(kind: str | None = None) -> list[Approximation]:
    """Every approximation, of one kind or of all, sorted by kind and name."""
    _scan()
    if kind is not None:
        find_kind(kind)
    return [a for (k, _), a in sorted(_found.items()) if kind in (None, k)]


def find(kind: str, name: str) -> Approximation:
    """The approximation ``name`` of ``kind``. A miss is a `PlanError` that lists what exists."""
    _scan()
    if (kind, name) not in _found:
        known = ", ".join(a.name for a in choices(kind))
        raise PlanError(f"unknown approximation {name!r} of {kind}: use one of {known}")
    return _found[kind, name]
