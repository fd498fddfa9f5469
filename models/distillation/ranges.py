"""Keeps activations where fixed point and fitted starts are good, and says which layer left its range."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ...approximations.apply import overrides_of
from ...approximations.overrides import Overrides
from .settings import DistillError

LIMITS = {"gelu": 6.0, "silu": 6.0, "tanh": 6.0, "sigmoid": 8.0, "softmax": 12.0}
"""Magnitudes beyond which an argument is penalised. A parabola for GELU errs most where its argument is large."""

SPREAD = {"layer_norm": 3.0, "rsqrt": 3.0, "reciprocal": 2.0}
"""Powers of two that what is divided by may be from its mean: every factor of 4 costs another step of the iteration."""

DIVISIONS = tuple(SPREAD)
_FAR = 8.0


class RangePenalty:
    """An observer of approximated functions that sums penalties during a forward pass.

    x beyond its limit L costs (|x| - L)^2, v more than s powers of two from its mean costs (|log2 v - mean| - s)^2,
    each summed over the last dimension and averaged over the others (a mean over all would not see one outlier).
    """

    def __init__(self) -> None:
        self.terms: list[Tensor] = []

    def __call__(self, site: str, kind: str, value: Tensor) -> None:
        value = value.float()
        if kind in LIMITS:
            excess = torch.relu(value.abs() - LIMITS[kind])
        else:
            logarithm = value.clamp_min(2.0**-20).log2()
            excess = torch.relu((logarithm - logarithm.mean().detach()).abs() - SPREAD[kind])
        self.terms.append(excess.square().sum(-1).mean())

    def take(self) -> Tensor:
        """The sum since the last call. Zero if nothing was seen."""
        total = torch.stack(self.terms).sum() if self.terms else torch.zeros(())
        self.terms.clear()
        return total


class Extremes:
    """An observer that keeps the least and largest value by site, in the order of the forward pass, NaN included."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, float]] = {}

    def __call__(self, site: str, kind: str, value: Tensor) -> None:
        low, high = (float(v) for v in value.detach().aminmax())
        known = self.seen.get(site, (low, high))
        self.seen[site] = (min(low, known[0]), max(high, known[1]))


def observed(model: nn.Module) -> Overrides:
    """What answers for an approximated model, to set an observer on. Errors: DistillError if it is not approximated."""
    overrides = overrides_of(model)
    if overrides is None:
        raise DistillError("the model is not approximated: there is nothing to observe")
    return overrides


def extremes(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Least and largest value at every site for one batch."""
    overrides, found = observed(model), Extremes()
    before, overrides.observer = overrides.observer, found
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        overrides.observer = before
    return found.seen


def blame(now: dict[str, tuple[float, float]], start: dict[str, tuple[float, float]]) -> str:
    """The first site of a forward pass that is far beyond its range at the start, or meets NaN or infinity.

    Where none is, the one that grew most.
    """
    if not now:
        return "no layer was seen"

    def growth(site: str) -> float:
        size = max(abs(v) for v in now[site])
        known = max(1e-6, *(abs(v) for v in start.get(site, (size, size))))
        return size / known if math.isfinite(size) else math.inf

    far = [site for site in now if growth(site) > _FAR]
    where = far[0] if far else max(now, key=growth)
    text = f"{where} sees [{now[where][0]:.4g}, {now[where][1]:.4g}]"
    if where in start:
        text += f", at the start [{start[where][0]:.4g}, {start[where][1]:.4g}]"
    return text
