"""A smaller copy of a model: with some of its layers, fewer heads, or a narrower feed-forward."""

from __future__ import annotations

import copy
import re
from typing import Any, TypeVar

from torch import nn

from ...approximations import pooling
from ..distillation_settings import DistillError
from .heads import SentenceEncoder

Model = TypeVar("Model", bound=nn.Module)
_INTERMEDIATE = ("intermediate_size", "hidden_dim", "encoder_ffn_dim", "ffn_dim")


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
    if isinstance(model, SentenceEncoder):
        return _around(model, with_layers(model.model, kept))
    config: Any = copy.deepcopy(model.config)
    setattr(config, next(n for n in pooling.COUNTS if hasattr(config, n)), len(kept))
    if types := getattr(config, "layer_types", None):
        config.layer_types = [types[number] for number in kept]
    smaller = _like(model, config)
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


def narrowed(model: Model, heads: int | None = None, intermediate: int | None = None) -> Model:
    """A copy of a model with fewer attention heads and features between the two layers of its feed-forward (None: as
    many). Neighbouring heads are joined: each reads the features of all that it stands for. The first features of the
    feed-forward stay (models/distillation/narrowing.py puts the ones that matter there).

    Errors: DistillError for a number that the model cannot have.
    """
    own_heads, own_intermediate = widths(model)
    if heads in (None, own_heads) and intermediate in (None, own_intermediate):
        return model
    if isinstance(model, SentenceEncoder):
        return _around(model, narrowed(model.model, heads, intermediate))
    config: Any = copy.deepcopy(model.config)
    if heads not in (None, own_heads):
        if not own_heads or own_heads % heads or not _joins_heads(config):
            raise DistillError(f"heads {heads}: {_cannot_join(model, own_heads)} leave heads out")
        config.num_attention_heads = heads
    if intermediate is not None:
        if not own_intermediate or intermediate > own_intermediate:
            most = f"has {own_intermediate}; give fewer, or" if own_intermediate else "does not say how many it has;"
            raise DistillError(f"intermediate {intermediate}: {type(model).__name__} {most} leave intermediate out")
        setattr(config, next(name for name in _INTERMEDIATE if hasattr(config, name)), intermediate)
    smaller, weights = _like(model, config), model.state_dict()
    for name, value in smaller.state_dict().items():
        for axis, size in enumerate(value.shape):
            if size != (whole := weights[name].shape[axis]) and (size, whole) != (intermediate, own_intermediate):
                raise DistillError(f"{type(model).__name__}: {name} is of another form; leave intermediate out")
            weights[name] = weights[name].narrow(axis, 0, size)
    smaller.load_state_dict(weights)
    return smaller.eval()


def widths(model: nn.Module) -> tuple[int | None, int | None]:
    """A model's attention heads and the features between the two layers of its feed-forward; None where its
    configuration does not say them."""
    config: Any = getattr(model, "config", None)
    intermediate = next((getattr(config, name) for name in _INTERMEDIATE if hasattr(config, name)), None)
    heads = getattr(config, "num_attention_heads", None)
    return (heads if isinstance(heads, int) else None, intermediate if isinstance(intermediate, int) else None)


def _joins_heads(config: Any) -> bool:
    """Whether a head's features are the model's divided by its heads, in every projection."""
    return not any(hasattr(config, name) for name in ("head_dim", "num_key_value_heads", "d_kv"))


def _cannot_join(model: nn.Module, heads: int | None) -> str:
    kind = type(model).__name__
    if heads and _joins_heads(model.config):
        return f"{kind} has {heads}, of which neighbours are joined; give a divisor, or"
    return f"the heads of {kind} cannot be joined;"


def _around(model: Model, inside: nn.Module) -> Model:
    """A copy of a sentence encoder, with its head if it has one, around another model."""
    own: Any = model
    return copy.deepcopy(model, {id(own.model): inside, id(own.config): inside.config}).eval()


def _like(model: nn.Module, config: Any) -> Any:
    """A model of the same class, with weights of its own, and without what that one was loaded without, such as a
    pooler that nothing reads."""
    smaller = type(model)._from_config(config)  # type: ignore[attr-defined]
    for name, _ in [*smaller.named_children()]:
        if getattr(model, name) is None:
            setattr(smaller, name, None)
    return smaller


def stack_of(model: nn.Module, count: int) -> str:
    """The path of the list that holds the layers."""
    path = pooling.layers_path(model, count)
    if path is None:
        raise DistillError(f"{type(model).__name__}: has no list of {count} layers to choose from; leave --layers out")
    return path
