"""Post-training quantisation: weights rounded so that what the layers compute on typical inputs changes least.

Rounding to the nearest minimises the error of each weight. What counts is the error of a layer's result, in which the
errors of weights whose inputs go together add up or cancel. The inputs of a layer are rounded one after the other, and
each error is made up for, as well as can be, by the inputs that are still to come (GPTQ: E. Frantar et al.,
arXiv:2210.17323, algorithm 1). No labels, no gradients; quantisation-aware training does more, and takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .calibrate import in_force
from .errors import CalibrationError
from .linear import AffineParameters, quantise, unfold
from .plan import Plan

DAMPING = 0.01  # of the mean square of an input: what is never seen must not be moved without bounds


@dataclass
class _Layer:
    """A weight that is to be quantised, and sum x x^T of what it reads, the norm's affine taken off."""

    path: str
    weight: Tensor
    axis: int
    gain: Tensor | None
    bits: int
    moments: Tensor


class _Moments:
    """Collects every layer's second moments, in float64."""

    def __init__(self) -> None:
        self.layers: dict[int, _Layer] = {}

    def __call__(
        self, path: str, x: Tensor, weight: Tensor, axis: int, norm: AffineParameters | None, bits: int
    ) -> None:
        rows = x.detach().reshape(-1, x.shape[-1]).double()
        gain = None if norm is None else norm.gain.detach().double()
        if norm is not None and gain is not None:
            rows = unfold(rows if norm.shift is None else rows - norm.shift.detach().double(), gain)
        if id(weight) not in self.layers:
            self.layers[id(weight)] = _Layer(path, weight, axis, gain, bits, torch.zeros(2 * rows.shape[-1:]).double())
        self.layers[id(weight)].moments += rows.t() @ rows


def round_weights(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    plan: Plan,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Round the weights of the layers that the plan quantises, in place. Their float values are lost.

    batches: arguments of the model's forward, some hundreds of typical texts. The plan's own quantisation finds the
    rounded weights unchanged afterwards. ``progress(done, total)`` is called after each layer.
    Returns, by layer, the relative squared error of its result: (to the nearest, as rounded).

    Raises CalibrationError if there are no batches.
    """
    batches = list(batches)
    if not batches:
        raise CalibrationError("there are no batches to round the weights on: give some typical inputs")
    seen = _Moments()
    with in_force(model, plan) as overrides, torch.no_grad():
        overrides.reader = seen
        try:
            for batch in batches:
                model(**batch)
        finally:
            overrides.reader = None
    errors = {}
    for done, layer in enumerate(seen.layers.values(), start=1):
        errors[layer.path] = _round(layer)
        if progress is not None:
            progress(done, len(seen.layers))
    return errors


@torch.no_grad()
def _round(layer: _Layer) -> tuple[float, float]:
    weight = layer.weight.double()
    weight = weight.t() if layer.axis == 0 else weight  # [inputs, outputs]
    gain = torch.ones(len(weight), 1).double() if layer.gain is None else layer.gain.unsqueeze(1)
    wanted = weight * gain
    integers, exponents = quantise(wanted, layer.bits, axis=1)
    unit, limit = torch.exp2(exponents.double()), 2.0 ** (layer.bits - 1) - 1
    rounded = _compensated(wanted, unit, limit, layer.moments)
    errors = (_error(layer.moments, wanted - integers * unit, wanted), _error(layer.moments, wanted - rounded, wanted))
    if errors[1] > errors[0]:
        rounded = integers * unit
    # Where the gain is 0, the layer reads nothing but the norm's shift, which meets the weight unrounded.
    result = torch.where(gain == 0, weight, unfold(rounded, gain))
    layer.weight.copy_(result.t() if layer.axis == 0 else result)
    return errors[0], min(errors)


def _compensated(wanted: Tensor, unit: Tensor, limit: float, moments: Tensor) -> Tensor:
    """wanted [inputs, outputs] on the grid, input by input in the order of how much they are used."""
    order = moments.diagonal().argsort(descending=True)
    moments = moments[order][:, order]
    damping = DAMPING * moments.diagonal().mean().clamp_min(1e-12)
    inverse = torch.linalg.inv(moments + damping * torch.eye(len(moments)).double())
    upper = torch.linalg.cholesky(inverse, upper=True)
    left, rounded = wanted[order].clone(), torch.empty_like(wanted)
    for k in range(len(left)):
        rounded[k] = torch.round(left[k] / unit[0]).clamp(-limit, limit) * unit[0]
        error = (left[k] - rounded[k]) / upper[k, k]
        left[k + 1 :] -= upper[k, k + 1 :, None] * error
    return rounded[order.argsort()]


def _error(moments: Tensor, difference: Tensor, weight: Tensor) -> float:
    """Squared error of the results over their squares: tr(D^T M D) / tr(W^T M W)."""
    total = ((moments @ weight) * weight).sum()
    return float(((moments @ difference) * difference).sum() / total) if total > 0 else 0.0
