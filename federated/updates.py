"""Updates as one vector: what clients add up, in a fixed order of names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

EXTRA = 3
"""Numbers after the weights: the client's weight in the mean, its loss times that, and whether it was clipped."""


def flat(values: Mapping[str, Tensor]) -> Tensor:
    """All values in one float64 vector, by name."""
    return torch.cat([values[name].reshape(-1).double() for name in sorted(values)])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, with the shapes and types of `like`."""
    made, at = {}, 0
    for name in sorted(like):
        size = like[name].numel()
        made[name] = vector[at : at + size].reshape(like[name].shape).to(like[name].dtype)
        at += size
    return made


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """The update, as one vector."""
    return flat(after) - flat(before)


def clipped(update: Tensor, norm: float) -> Tensor:
    """The update, shortened to a Euclidean norm if it is longer."""
    length = float(update.norm())
    return update * (norm / length) if length > norm else update
