"""A model with some of its layers."""

from __future__ import annotations

import copy
import re
from typing import Any, TypeVar

from torch import nn

from ...approximations import pooling
from ..distillation_settings import DistillError
from .heads import SentenceEncoder

Model = TypeVar("Model", bound=nn.Module)


def spread(layers: int, of: int) -> list[int]:
    """Which layers a compact student keeps: evenly spaced, the last among them.

    Errors: DistillError.
    """
    if not 1 <= layers <= of:
        raise DistillError(f"{layers} layers: the model has {of}; give a number from 1 to {of}")
    return [round((i + 1) * of / layers) - 1 for i in range(layers)]


def layer_count(model: nn.Module) -> int:
    """How many layers a model has, by its configuration."""
    count = pooling.layer_count(model)
    if count is None:
        raise DistillError(f"{type(model).__name__}: its configuration does not say how many layers it has")
    return count


def with_layers(model: Model, kept: list[int]) -> Model:
    """A copy of a model with these of its layers, in this order."""
    count = layer_count(model)
    if kept == list(range(count)):
        return copy.deepcopy(model)
    if type(model) is SentenceEncoder:
        return SentenceEncoder(with_layers(model.model, kept), model.pooling).eval()  # type: ignore[return-value]
    config: Any = copy.deepcopy(model.config)
    setattr(config, next(n for n in pooling.COUNTS if hasattr(config, n)), len(kept))
    if types := getattr(config, "layer_types", None):
        config.layer_types = [types[number] for number in kept]
    smaller = type(model)._from_config(config)  # type: ignore[attr-defined]
    for name, _ in [*smaller.named_children()]:
        if getattr(model, name) is None:  # what it was loaded without, such as a pooler that nothing reads
            setattr(smaller, name, None)
    path = stack_of(model, count)
    pattern = re.compile(rf"{re.escape(path)}\.(\d+)\.(.*)")
    weights = {}
    for name, value in model.state_dict().items():
        match = pattern.fullmatch(name)
        if match is None:
            weights[name] = value
        elif int(match[1]) in kept:
            weights[f"{path}.{kept.index(int(match[1]))}.{match[2]}"] = value
    try:
        smaller.load_state_dict(weights)
    except RuntimeError as error:
        reason = f"{type(model).__name__}: its layers are not alike ({str(error).splitlines()[1].strip()[:80]})"
        raise DistillError(f"{reason}; leave --layers out") from None
    return smaller.eval()


def stack_of(model: nn.Module, count: int) -> str:
    """The path of the list that holds the layers."""
    path = pooling.layers_path(model, count)
    if path is None:
        raise DistillError(f"{type(model).__name__}: has no list of {count} layers to choose from; leave --layers out")
    return path
