"""Updates as one vector: what clients add up, in a fixed order of names."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

EXTRA = 3
"""Numbers after the weights: the client's weight in the mean, its loss times that, and whether it was clipped (less a
half). Where clients add the noise, or nobody asks for it, the number is the same whatever their examples are."""


def flat(values: Mapping[str, Tensor]) -> Tensor:
    """All values in one float64 vector, by name."""
    return torch.cat([values[name].reshape(-1).double() for name in sorted(values)])


def unflat(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse, with the shapes and types of `like`."""
    tensors, at = {}, 0
    for name in sorted(like):
        size = like[name].numel()
        tensors[name] = vector[at : at + size].reshape(like[name].shape).to(like[name].dtype)
        at += size
    return tensors


def difference(after: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """The update, as one vector."""
    return flat(after) - flat(before)


def clipped(update: Tensor, norm: float) -> Tensor:
    """The update, shortened to a Euclidean norm if it is longer. One that is not finite counts as none: a refusal would
    tell of the examples behind it."""
    length = float(update.norm())
    if not math.isfinite(length):
        return torch.zeros_like(update)
    return update * (norm / length) if length > norm else update
