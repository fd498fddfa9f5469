"""Runs a graph in float64: the reference for passes, and how calibration sees every intermediate value."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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


def steps(
    nodes: list[Node], clients: Mapping[str, Tensor] | None = None, fixed: Mapping[int, Tensor] | None = None
) -> Iterator[tuple[Node, Tensor, list[Tensor]]]:
    """Each node with its value and its arguments' values, float64, but none of `fixed`: values known already.

    `clients`: the client's tensors and states by name (default: the example's). A value is let go after its last use.
    """
    last = {id(arg): node for node in nodes for arg in node.args}
    values = dict(fixed or {})
    for node in nodes:
        if id(node) in values:
            continue
        args = [values[id(arg)] for arg in node.args]
        if node.op in ("client", "state") and clients is not None:
            value = clients[node.name].to(torch.float64)
        else:
            value = compute(node, args)
        yield node, value, args
        for arg in node.args:
            if last[id(arg)] is node:
                values.pop(id(arg), None)
        if id(node) in last:
            values[id(node)] = value


def run(nodes: list[Node], clients: Mapping[str, Tensor] | None = None) -> dict[int, Tensor]:
    """Values of all nodes by id, as of `steps`."""
    return {id(node): value for node, value, _ in steps(nodes, clients)}
