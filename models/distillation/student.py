"""The student: the teacher, or some of its layers, with a plan's approximations in place."""

from __future__ import annotations

import copy
import re
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from torch import Tensor, nn

from ...approximations import Choice, Plan, PlanError, calibrate, find, find_kind, kinds
from ...approximations.registry import EXACT
from .settings import DistillError

Model = TypeVar("Model", bound=nn.Module)
_COUNTS = ("num_hidden_layers", "n_layers", "n_layer")


def spread(layers: int, of: int) -> list[int]:
    """Which layers a compact student keeps: evenly spaced, the last among them.

    Errors: DistillError.
    """
    if not 1 <= layers <= of:
        raise DistillError(f"{layers} layers: the model has {of}; give a number from 1 to {of}")
    return [round((i + 1) * of / layers) - 1 for i in range(layers)]


def layer_count(model: nn.Module) -> int:
    """How many layers a model has, by its configuration."""
    config: Any = model.config
    for name in _COUNTS:
        if isinstance(getattr(config, name, None), int):
            return getattr(config, name)
    raise DistillError(f"{type(model).__name__}: its configuration does not say how many layers it has")


def with_layers(model: Model, kept: list[int]) -> Model:
    """A copy of a model with these of its layers, in this order."""
    count = layer_count(model)
    if kept == list(range(count)):
        return copy.deepcopy(model)
    config: Any = copy.deepcopy(model.config)
    setattr(config, next(n for n in _COUNTS if hasattr(config, n)), len(kept))
    smaller = type(model)._from_config(config)  # type: ignore[attr-defined]
    path = stack_of(model, count)
    pattern = re.compile(rf"{re.escape(path)}\.(\d+)\.(.*)")
    weights = {}
    for name, value in model.state_dict().items():
        found = pattern.fullmatch(name)
        if found is None:
            weights[name] = value
        elif int(found[1]) in kept:
            weights[f"{path}.{kept.index(int(found[1]))}.{found[2]}"] = value
    smaller.load_state_dict(weights)
    return smaller.eval()


def stack_of(model: nn.Module, count: int) -> str:
    """The path of the list that holds the layers."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return path
    raise DistillError(f"{type(model).__name__}: has no list of {count} layers to choose from; leave --layers out")


def in_training(plan: Plan) -> Plan:
    """The plan as a student is trained with it: divisions are exact, unless they are to be got used to.

    Goldschmidt's iteration is within 2^-14 of them on the range it is fitted to, so there is nothing to get used to;
    and the ranges move with the weights. They are calibrated when the student is done. What is far from a division
    (a polynomial, a constant) is trained with, constants and all.
    """

    def close(kind: str, choice: Choice) -> bool:
        return find_kind(kind).is_division and not find(kind, choice.name).needs_distillation

    exact = {kind: EXACT for kind in kinds() if close(kind, getattr(plan, kind))}
    overrides = {
        pattern: {
            kind: Choice(name=EXACT) if close(kind, choice) else choice
            for kind, choice in by_kind.items()
            if not (kind in exact and close(kind, choice))
        }
        for pattern, by_kind in plan.overrides.items()
    }
    return plan.replace(**exact, overrides=overrides, ranges={}, fits=plan.trained_fits())


def settled(model: nn.Module, batches: list[dict[str, Tensor]], plan: Plan) -> Plan:
    """The plan with the constants that a student is to be trained with, fitted to the untrained one; others' later."""
    if not plan.needs_distillation():
        return plan
    return plan.replace(ranges={}, fits=calibrate(model, batches, plan).trained_fits())


def check_modules(model: nn.Module, plan: Plan) -> None:
    """Raise PlanError if the plan speaks of modules that the model does not have."""
    paths = [path for path, _ in model.named_modules()]
    for pattern in plan.overrides:
        if not any(fnmatchcase(path, pattern) for path in paths):
            raise PlanError(
                f"plan {plan.name}: the model has no module {pattern!r}; it has {', '.join(paths[1:4])} ..."
            )
