"""Smaller models of a model's kind: fewer layers, heads that are joined, a narrower feed-forward.

What they lose is made up for by least squares (models/distillation/refit.py) and by nothing else, so what one loses
says how much a student of its shape has to learn, not how well it ends.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...approximations import Plan, approximate, restore
from ...approximations.calibrate import in_force
from ..distillation.narrowing import arrange
from ..distillation.refit import refit
from ..distillation.student import in_training, settled
from ..loading.layers import layer_count, narrowed, spread, widths, with_layers


@dataclass(frozen=True)
class Shape:
    """What a smaller model has; None: as many as the model."""

    layers: int | None = None
    heads: int | None = None
    intermediate: int | None = None

    @property
    def options(self) -> list[str]:
        """What `distill` is given for a student of this shape."""
        given = {name: value for name, value in vars(self).items() if value}
        layers = ["--layers", str(given.pop("layers"))] if "layers" in given else []
        return layers + [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


def smaller_shapes(model: nn.Module) -> Iterator[Shape]:
    """Those that are tried: two thirds, a half and a third of the layers; half of the heads, and of the features in the
    feed-forward; both; both and half of the layers.

    Errors: DistillError for a model that does not say how many layers it has.
    """
    count, (heads, intermediate) = layer_count(model), widths(model)
    fewer = sorted({round(count * part / 6) for part in (2, 3, 4)} & {*range(1, count)}, reverse=True)
    yield from (Shape(layers=layers) for layers in fewer)
    joined = heads // 2 if heads and heads % 2 == 0 else None
    narrow = intermediate // 2 if intermediate and intermediate > 1 else None
    if joined:
        yield Shape(heads=joined)
    if narrow:
        yield Shape(intermediate=narrow)
    if joined and narrow:
        yield Shape(heads=joined, intermediate=narrow)
        if count > 1:
            yield Shape((count + 1) // 2, joined, narrow)


def smaller_model(
    model: nn.Module, shape: Shape, batches: Sequence[dict[str, Tensor]], plan: Plan, trained: Plan | None
) -> nn.Module:
    """A model of this shape that is refitted to give what the model gives.

    batches: some ten thousand tokens. plan: what the smaller one computes with. trained: what the model does (None:
    torch's functions).

    Errors: DistillError for a shape that the model cannot have; PlanError.
    """
    own = layer_count(model)
    kept = spread(shape.layers or own, own)
    teacher: Any = copy.deepcopy(model).requires_grad_(False)

    def computing() -> AbstractContextManager[Any]:
        return nullcontext() if trained is None else in_force(teacher, trained)

    with computing():
        arrange(teacher, batches, shape.heads, shape.intermediate)
    student = narrowed(with_layers(teacher, kept), shape.heads, shape.intermediate)
    if plan.needs_distillation():  # else its functions are close to torch's, which take a fraction of the time
        approximate(student, in_training(settled(student, list(batches), plan)))
    with computing():
        refit(teacher, student, batches, kept)
    return restore(student)
