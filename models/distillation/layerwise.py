"""A model layer by layer: with what its layers are called, what their linear layers read, and what those give."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

_QUERIES_AND_KEYS = (("query", "key"), ("q_proj", "k_proj"), ("q_lin", "k_lin"))  # how their layers' names end
Batch = dict[str, Tensor]
Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Enough(Exception):
    """Raised in a forward that has shown what it was to show."""


def first_calls(model: nn.Module, path: str, batches: Sequence[Batch]) -> list[Call]:
    """What the first layer of the stack is called with."""
    calls: list[Call] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))
        raise _Enough

    hook = model.get_submodule(f"{path}.0").register_forward_pre_hook(keep, with_kwargs=True)
    try:
        for batch in batches:
            _until_enough(model, (), batch)
    finally:
        hook.remove()
    return calls


def next_calls(layer: nn.Module, calls: Sequence[Call]) -> list[Call]:
    """The same calls of the next layer, which reads this one's result."""
    results = ((layer(*args, **kwargs), args, kwargs) for args, kwargs in calls)
    return [((out[0] if isinstance(out, tuple) else out, *args[1:]), kwargs) for out, args, kwargs in results]


def groups_of(layer: nn.Module, call: Call) -> list[list[str]]:
    """The linear layers in the order in which they run, together where they read the same value."""
    groups: list[tuple[int, list[str]]] = []

    def run(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not groups or groups[-1][0] != args[0].data_ptr():
            groups.append((args[0].data_ptr(), []))
        groups[-1][1].append(name)

    hooks = [module.register_forward_pre_hook(partial(run, name)) for name, module in linears_of(layer)]
    layer(*call[0], **call[1])
    for hook in hooks:
        hook.remove()
    return [names for _, names in groups]


def results_of(layer: nn.Module, calls: Sequence[Call]) -> dict[str, list[Tensor]]:
    """What its linear layers give in each call, by name."""
    results: dict[str, list[Tensor]] = {name: [] for name, _ in linears_of(layer)}

    def keep(name: str, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        results[name].append(out)

    hooks = [module.register_forward_hook(partial(keep, name)) for name, module in linears_of(layer)]
    for args, kwargs in calls:
        layer(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return results


def inputs_of(layer: nn.Module, calls: Sequence[Call], name: str, seen: Sequence[Tensor]) -> Tensor:
    """What one of its linear layers reads, [tokens, inputs]."""
    inputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])
        raise _Enough

    hook = layer.get_submodule(name).register_forward_pre_hook(keep)
    for args, kwargs in calls:
        _until_enough(layer, args, kwargs)
    hook.remove()
    return kept_tokens(inputs, seen)


def queries_and_keys(names: Iterable[str]) -> tuple[str, str] | None:
    """Of linear layers' paths those that give queries and keys; None if there are none."""
    by_end = {name.rpartition(".")[2]: name for name in names}
    return next(((by_end[q], by_end[k]) for q, k in _QUERIES_AND_KEYS if q in by_end and k in by_end), None)


def _until_enough(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with suppress(_Enough):
        module(*args, **kwargs)


def linears_of(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    """Its linear layers, with their paths in it."""
    return [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]


def kept_tokens(values: Sequence[Tensor], seen: Sequence[Tensor]) -> Tensor:
    """Of values [texts, tokens, ...] those of tokens that are not padding."""
    return torch.cat([value[mask > 0] for value, mask in zip(values, seen, strict=True)])
