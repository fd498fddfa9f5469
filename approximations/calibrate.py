"""Ranges of what approximations are fitted to, as seen on real inputs, and the fits made for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .apply import approximate, overrides_of, restore
from .errors import CalibrationError
from .overrides import Overrides, everything
from .plan import DENOMINATOR, Plan, kind_of
from .registry import Constants, Range, find, find_kind, kinds

Batch = Mapping[str, Any]
Progress = Callable[[int, int], None]

_GROWN = "the model itself does not; distil a student with this plan, or take the plan faithful"
_DIVERGED = "the model does not, but with the plan's approximations; choose others for the modules before it"


class _Ranges:
    """An observer that keeps the least and the largest value by site; NaN is refused, or counts as infinite."""

    def __init__(self, refuse_nan: bool = True, why: str = "check the model and the calibration inputs there") -> None:
        self.seen: dict[str, Range] = {}
        self.refuse_nan, self.why = refuse_nan, why

    def __call__(self, site: str, kind: str, value: Tensor) -> None:
        low, high = (float(v) for v in find_kind(kind).recorded(value.detach()).aminmax())
        if not (math.isfinite(low) and math.isfinite(high)):
            if self.refuse_nan:
                raise CalibrationError(f"{site} meets NaN or infinity: {self.why}")
            low, high = -math.inf, math.inf
        known = self.seen.get(site, (low, high))
        self.seen[site] = (min(low, known[0]), max(high, known[1]))


def calibrate(
    model: nn.Module, batches: Iterable[Batch], plan: Plan | str | None = None, progress: Progress | None = None
) -> Plan:
    """Return the plan with ranges and fits for this model, which does not change.

        plan = bf.calibrate(model, batches, "faithful")

    batches   arguments of the model's forward; padding counts, too
    plan      a preset's name or a plan (default: "faithful"); its trained constants are kept
    progress  called with (done, total) after each batch of both passes

    The first pass runs exact functions. The second runs the approximations, and fits variances and denominators.

    Raises CalibrationError without batches, or if a value is NaN or infinite.
    """
    batches = list(batches)
    if not batches:
        raise CalibrationError("there are no batches to calibrate on: give at least one")
    plan = Plan.preset(plan or "faithful") if plan is None or isinstance(plan, str) else plan
    kept = plan.trained_fits()
    plan = plan.replace(ranges={}, fits={})
    total = 2 * len(batches)
    first, second = _Ranges(), _Ranges(why=_GROWN if plan.needs_distillation() else _DIVERGED)
    with in_force(model, plan) as overrides:
        overrides.exact = everything()
        _run(model, overrides, batches, first, _counted(progress, 0, total))
        fitted = _fitted(plan, first.seen, kept)
        overrides.use(fitted)
        overrides.exact = _close(plan)
        _run(model, overrides, batches, second, _counted(progress, len(batches), total))
    ranges = dict(second.seen)
    for site, (low, high) in first.seen.items():
        if not find_kind(kind_of(site)).is_division:
            known = ranges.get(site, (low, high))
            ranges[site] = (min(low, known[0]), max(high, known[1]))
    return _fitted(plan, ranges, fitted.trained_fits())


def check(model: nn.Module, batches: Iterable[Batch], plan: Plan, progress: Progress | None = None) -> None:
    """Raise CalibrationError, naming sites, if on these batches the plan's fitted ranges are left."""
    left = out_of_range(model, batches, plan, progress)
    if left:
        site, (low, high) = next(iter(left.items()))
        fitted = plan.widened(site)
        expected = "was not calibrated" if fitted is None else f"is fitted to [{fitted[0]:.4g}, {fitted[1]:.4g}]"
        raise CalibrationError(
            f"{len(left)} sites left the calibrated range, first {site}: saw [{low:.4g}, {high:.4g}], "
            f"{expected}; calibrate on such inputs"
        )


def out_of_range(
    model: nn.Module, batches: Iterable[Batch], plan: Plan, progress: Progress | None = None
) -> dict[str, Range]:
    """The sites, with the ranges seen, that left their fitted (widened) range or have none, with the plan in force."""
    batches = list(batches)
    ranges = _Ranges(refuse_nan=False)  # a division that left its range may well diverge, and is to be named
    with in_force(model, plan) as overrides:
        _run(model, overrides, batches, ranges, _counted(progress, 0, len(batches)))
    left = {}
    for site, (low, high) in ranges.seen.items():
        fitted = plan.widened(site)
        if fitted is None or low < fitted[0] or high > fitted[1]:
            left[site] = (low, high)
    return left


def _close(plan: Plan) -> frozenset[str]:
    """The divisions that the plan leaves close to the exact ones, wherever they are."""
    far = {kind for kind, choice in plan.chosen() if find(kind, choice.name).needs_distillation}
    return frozenset(kind.name for kind in kinds().values() if kind.is_division and kind.name not in far)


def _fitted(plan: Plan, ranges: Mapping[str, Range], kept: Mapping[str, Constants] | None = None) -> Plan:
    ranged = plan.replace(ranges={site: ranges[site] for site in sorted(ranges)})
    fits: dict[str, Constants] = {}
    for site in ranged.ranges:
        path, whole, *_ = site.split("/")
        kind = kind_of(site)
        choice = plan.choice(kind, path)
        approximation = find(kind, choice.name)
        if approximation.fit is None:
            continue
        if kept and site in kept and approximation.accepts(kept[site]):
            fits[site] = kept[site]
            continue
        parent = find(whole, plan.choice(whole, path).name) if site.endswith(DENOMINATOR) else None
        widened = ranged.widened(site) or approximation.default_range
        range_ = find_kind(kind).fitted_range(ranged.ranges[site], widened, parent)
        if range_ is None:
            continue
        try:
            constants = approximation.constants(range_, choice.options)
            if not all(isinstance(number, float) and number.is_integer() for number in constants.values()):
                constants = approximation.constants(_coarse(*range_), choice.options)
            fits[site] = constants
        except CalibrationError as error:
            raise CalibrationError(f"{site}: {error}") from None
    return ranged.replace(fits=fits)


def _coarse(low: float, high: float) -> Range:
    """The range, each end moved outwards to a sixteenth of an octave: constants are public, and an end to its last
    digit would be an equation of the weights. Whole numbers, as of tables, say less."""
    return _outwards(low, math.floor if low > 0 else math.ceil), _outwards(high, math.ceil if high > 0 else math.floor)


def _outwards(end: float, whole: Callable[[float], int]) -> float:
    return math.copysign(2.0 ** (whole(16 * math.log2(abs(end))) / 16), end) if end else end


def _run(
    model: nn.Module, overrides: Overrides, batches: list[Batch], observer: _Ranges, after_batch: Callable[[int], None]
) -> None:
    overrides.observer = observer
    with torch.no_grad():
        for done, batch in enumerate(batches, start=1):
            model(**batch)
            after_batch(done)


def _counted(progress: Progress | None, before: int, total: int) -> Callable[[int], None]:
    """Progress of one pass of several."""
    return lambda done: None if progress is None else progress(before + done, total)


@contextmanager
def in_force(model: nn.Module, plan: Plan) -> Iterator[Overrides]:
    """The model in evaluation mode with the plan in force; afterwards as it was."""
    before, training = overrides_of(model), [m for m in model.modules() if m.training]
    previous = None if before is None else before.plan
    overrides = overrides_of(approximate(model.eval(), plan))
    assert overrides is not None
    try:
        yield overrides
    finally:
        overrides.observer, overrides.exact = None, frozenset()
        if previous is None:
            restore(model)
        else:
            overrides.use(previous)
        for module in training:
            module.training = True
