"""An operation that has no rule, taken apart as PyTorch takes it apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from .export import quietly
from .values import Value


def parts_of(
    operation: Callable[..., Any], args: Sequence[object], kwargs: Mapping[str, object]
) -> tuple[fx.Graph, list[Value]] | None:
    """The graph of smaller operations for a call, and the call's values in the order of the graph's placeholders.

    None: PyTorch has no smaller ones.
    """
    leaves, form = pytree.tree_flatten((list(args), dict(kwargs)))
    values = [leaf for leaf in leaves if isinstance(leaf, Value)]
    function = decomposition_table.get(operation, operation)  # without one, the dispatcher may still know

    def call(*tensors: Tensor) -> Any:
        inputs = iter(tensors)
        plain = [next(inputs) if isinstance(leaf, Value) else leaf for leaf in leaves]
        arguments, named = pytree.tree_unflatten(plain, form)
        return function(*arguments, **named)

    try:
        with quietly(), torch.no_grad():
            traced = make_fx(torch.func.functionalize(call), tracing_mode="fake")(*(_like(value) for value in values))
    except (NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # for these arguments
    calls = [item.target for item in traced.graph.nodes if item.op == "call_function"]
    if operation in calls or any(str(target).startswith("prims.") or isinstance(target, type) for target in calls):
        return None  # those have no rules, so it is the operation itself that lacks one
    return traced.graph, values


def _like(value: Value) -> Tensor:
    known = value.value
    if isinstance(known, Tensor):
        return known
    return torch.zeros(value.node.shape if value.node is not None else ()) if known is None else torch.tensor(known)
