"""Keeps activations where fixed point and fitted starts are good, and says which layer left its range."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ...approximations.apply import overrides_of
from ...approximations.overrides import Observer, Overrides
from ...approximations.registry import find_kind
from ..distillation_settings import DistillError

_FAR = 8.0


class RangePenalty:
    """An observer of approximated functions that sums penalties during a forward pass.

    x beyond its kind's limit L costs (|x| - L)^2, v more than the spread s of its kind from its mean, in powers of two,
    costs (|log2 v - mean| - s)^2, each summed over the last dimension and averaged over the others (a mean over all
    would not see one outlier). A kind with neither costs nothing.

    A parabola for GELU errs most where its argument is large; a division costs another step for every factor of 4.
    """

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def __call__(self, site: str, kind: str, value: Tensor) -> None:
        if not torch.is_grad_enabled():  # judged, not trained
            return
        value, known_kind = value.float(), find_kind(kind)
        if known_kind.limit is not None:
            self._seen.append(_cost(value.abs() - known_kind.limit))
        if known_kind.spread is not None:
            logarithm = value.clamp_min(2.0**-20).log2()
            self._seen.append(_cost((logarithm - logarithm.mean().detach()).abs() - known_kind.spread))

    def take(self) -> Tensor:
        """The sum since the last call. Zero if nothing was seen."""
        seen, self._seen = self._seen, []
        return torch.stack(seen).sum() if seen else torch.zeros(())


def _cost(excess: Tensor) -> Tensor:
    return torch.relu(excess).square().sum(-1).mean()


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


@contextmanager
def watching(model: nn.Module, observer: Observer) -> Iterator[None]:
    """With an observer of an approximated model's functions. Errors: DistillError."""
    overrides = observed(model)
    before, overrides.observer = overrides.observer, observer
    try:
        yield
    finally:
        overrides.observer = before


def extremes(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """Least and largest value at every site for one batch."""
    observer = Extremes()
    with watching(model, observer), torch.no_grad():
        model(**batch)
    return observer.seen


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
