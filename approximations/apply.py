"""Put a plan into force on a model, and take it away. The model stays the same object with the same parameters."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

from torch import Tensor, nn

from .errors import PlanError
from .experts import all_experts, is_experts
from .overrides import Overrides
from .plan import Plan
from .pooling import check_pooling, layer_count, layers_path, on_fewer
from .registry import kinds

Model = TypeVar("Model", bound=nn.Module)


@functools.cache
def _composites() -> dict[str, tuple[str, float]]:
    """Class name of an activation of smaller functions -> (kind, s) of f(s x) / s."""
    return {layer: (kind.name, scale) for kind in kinds().values() for layer, scale in kind.layers.items()}


class _Call:
    """What replaces one module's forward. Holds the module, so that a deep copy of a model is a model of its own."""

    def __init__(self, overrides: Overrides, path: str, module: nn.Module, layer: int | None) -> None:
        self.overrides = overrides
        self.path = path
        self.module = module
        self.layer = layer  # its number in the stack of layers, if it is one of them
        self.replaced: Callable[..., Any] | None = module.__dict__.get("forward")  # another library's replacement
        self.composite = _composites().get(type(module).__name__)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        # A try/finally and not a pair of hooks: under torch.export, hooks do not run after an exception.
        with self.overrides.inside(self.path):
            if self.composite is not None:
                return self._answer(*self.composite, *args, **kwargs)
            if is_experts(self.module):
                return all_experts(self.module, *args, **kwargs)
            halvings = 0 if self.layer is None else self.overrides.plan.halvings(self.layer)
            if halvings:
                return self._on_fewer(halvings, *args, **kwargs)
            return self.original(*args, **kwargs)

    @property
    def original(self) -> Callable[..., Any]:
        return self.replaced or functools.partial(type(self.module).forward, self.module)

    def _on_fewer(self, halvings: int, *args: Any, **kwargs: Any) -> Any:
        signature = inspect.signature(self.original)
        first = args[0] if args else next(iter(kwargs.values()))
        known = self.overrides.pooled.get(first)
        result, own, answer = on_fewer(self.original, signature, halvings, known, args, kwargs)
        self.overrides.pooled[answer] = own
        return result

    def _answer(self, kind: str, scale: float, x: Tensor) -> Tensor:
        return self.overrides.elementwise(kind, x, lambda: self._exactly(x), scale)

    def _exactly(self, x: Tensor) -> Tensor:
        with self.overrides.paused():  # its tanh is part of the function that is to stay exact
            return self.original(x)


def approximate(model: Model, plan: Plan | str) -> Model:
    """Make a model compute with a plan's approximations, in training, inference and torch.export. Returns the model.

        bf.approximate(model, "fast")

    Parameters, buffers, `save_pretrained` and the forward's signature do not change. A second call replaces the plan.

    Raises PlanError if the model is part of an approximated one.
    """
    plan = Plan.preset(plan) if isinstance(plan, str) else plan
    check_pooling(model, plan.pool, plan.name)
    current = overrides_of(model)
    if current is not None:
        current.use(plan)
        return model
    if any(_call_of(module) is not None for module in model.modules()):
        raise PlanError("a part of this model is approximated already: restore(part) first")
    overrides, stack = Overrides(plan), layers_path(model, layer_count(model))
    for path, module in model.named_modules():
        parent, _, number = path.rpartition(".")
        layer = int(number) if parent == stack and number.isdecimal() else None
        module.forward = MethodType(_entry(module), _Call(overrides, path, module, layer))
    return model


def restore(model: Model) -> Model:
    """Remove the approximations of a model, and return it."""
    if overrides_of(model) is None:
        return model
    for module in model.modules():
        call = _call_of(module)
        if call is not None:
            del module.__dict__["forward"]
            if call.replaced is not None:
                module.forward = call.replaced
    return model


def plan_of(model: nn.Module) -> Plan | None:
    """The plan in force on a model, None if it is not approximated."""
    overrides = overrides_of(model)
    return None if overrides is None else overrides.plan


def overrides_of(model: nn.Module) -> Overrides | None:
    """What answers an approximated model's functions. Raises PlanError for a part of such a model."""
    call = _call_of(model)
    if call is None:
        return None
    if call.path:
        raise PlanError(f"this module is {call.path!r} of an approximated model: use the whole model")
    return call.overrides


def _call_of(module: nn.Module) -> _Call | None:
    owner = getattr(module.__dict__.get("forward"), "__self__", None)
    return owner if isinstance(owner, _Call) else None


def _entry(module: nn.Module) -> Callable[..., Any]:
    """A function that looks like the class's forward (trainers and torch.export read its signature)."""

    @functools.wraps(type(module).forward)
    def forward(call: _Call, *args: Any, **kwargs: Any) -> Any:
        return call.forward(*args, **kwargs)

    forward.__name__ = "forward"  # a pickled bound method is found again by its name
    return forward
