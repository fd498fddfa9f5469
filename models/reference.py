"""Runs a graph in float64: the reference for passes, and how calibration sees every intermediate value."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..protocols.local import LOCAL
from .graph import Node


def _polynomial(x: Tensor, coefficients: list[float], domain: float = 0.0) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result


_COMPUTE: dict[str, Callable[..., Tensor]] = {
    **LOCAL,
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "mul_public": torch.mul,
    "mul_private": torch.mul,
    "matmul": torch.matmul,
    "linear": torch.matmul,
    "ldexp": lambda x, exponent: x * 2.0**exponent,
    "polynomial": _polynomial,
    "less": lambda x, threshold: (x < threshold).to(x.dtype),
}


def compute(node: Node, args: list[Tensor]) -> Tensor:
    """One node's value from its arguments'; a source's own."""
    if node.op in ("client", "weight", "constant"):
        assert node.value is not None
        return node.value.to(torch.float64)
    return _COMPUTE[node.op](*args, **node.attributes)


def fixed_values(nodes: list[Node]) -> dict[int, Tensor]:
    """Values of what is the same in every run: weights and constants, float64."""
    return {id(node): compute(node, []) for node in nodes if node.op in ("weight", "constant")}


def run(
    nodes: list[Node],
    clients: Mapping[str, Tensor] | None = None,
    observe: Callable[[Node, Tensor, list[Tensor]], None] | None = None,
    fixed: Mapping[int, Tensor] | None = None,
) -> dict[int, Tensor]:
    """Values of all nodes, float64. `clients`: the client's tensors by name (default: the example's).

    `observe` sees each node with its value and its arguments' values, but none of `fixed`: values known already.
    """
    values = dict(fixed or {})
    for node in nodes:
        if id(node) in values:
            continue
        args = [values[id(arg)] for arg in node.args]
        if node.op == "client" and clients is not None:
            value = clients[node.name].to(torch.float64)
        else:
            value = compute(node, args)
        values[id(node)] = value
        if observe:
            observe(node, value, args)
    return values
