"""Runs a graph in float64: the reference for passes, and how calibration sees every intermediate value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...protocols.operations import operations
from .graph import Node


def compute(node: Node, args: list[Tensor]) -> Tensor:
    """One node's value from its arguments'; a source's own."""
    if node.is_source:
        assert node.value is not None
        return node.value.to(torch.float64)
    if node.op == "ldexp":  # of graphs alone: a Program moves the scale instead
        return args[0] * 2.0 ** node.attributes["exponent"]
    return operations()[node.op].on_reals(*args, **node.attributes)


def fixed_values(nodes: list[Node]) -> dict[int, Tensor]:
    """Values of what is the same in every run: weights and constants, float64."""
    return {id(node): compute(node, []) for node in nodes if node.op in ("weight", "constant")}


def run(
    nodes: list[Node],
    clients: Mapping[str, Tensor] | None = None,
    observe: Callable[[Node, Tensor, list[Tensor]], None] | None = None,
    fixed: Mapping[int, Tensor] | None = None,
) -> dict[int, Tensor]:
    """Values of all nodes, float64. `clients`: the client's tensors and states by name (default: the example's).

    `observe` sees each node with its value and its arguments' values, but none of `fixed`: values known already.
    """
    values = dict(fixed or {})
    for node in nodes:
        if id(node) in values:
            continue
        args = [values[id(arg)] for arg in node.args]
        if node.op in ("client", "state") and clients is not None:
            value = clients[node.name].to(torch.float64)
        else:
            value = compute(node, args)
        values[id(node)] = value
        if observe:
            observe(node, value, args)
    return values
