"""A public factor on scores (1 / sqrt(d)) moves into the weights of the query, where it costs nothing."""

from __future__ import annotations

import torch

from ..graph import Builder, Node
from .rewrite import rewrite

SHAPES = {"reshape", "permute", "slice", "expand"}


def fold_scalars(outputs: list[Node]) -> list[Node]:
    builder = Builder()
    made: dict[tuple[int, float], Node] = {}

    def change(node: Node) -> Node | None:
        if node.op != "mul_public" or node.args[1].shape != () or node.args[0].op != "matmul":
            return None
        number = node.args[1].value
        assert number is not None
        product, factor = node.args[0], float(number)
        builder.path = node.path
        for position in (0, 1):
            scaled = _into(builder, product.args[position], factor, made)
            if scaled is not None:
                args = [scaled if i == position else arg for i, arg in enumerate(product.args)]
                return builder.matmul(*args)
        smaller = min((0, 1), key=lambda i: torch.Size(product.args[i].shape).numel())
        args = [builder.scale(arg, factor) if i == smaller else arg for i, arg in enumerate(product.args)]
        return builder.matmul(*args)

    return rewrite(outputs, change)


def _into(builder: Builder, node: Node, factor: float, made: dict[tuple[int, float], Node]) -> Node | None:
    """The node times the factor, by scaling the weights it is computed from; None where it is not so computed."""
    key = (id(node), factor)
    if key in made:
        return made[key]
    result: Node | None = None
    if node.op in SHAPES:
        inner = _into(builder, node.args[0], factor, made)
        if inner is not None:
            result = Node(node.op, [inner], node.attributes, node.shape, node.owner, node.path)
    elif node.op == "add" and node.args[1].op == "weight":
        inner = _into(builder, node.args[0], factor, made)
        if inner is not None:
            result = builder.add(inner, _scaled(node.args[1], factor))
    elif node.op == "linear":
        result = builder.matmul(node.args[0], _scaled(node.args[1], factor))
    if result is not None:
        made[key] = result
    return result


def _scaled(weight: Node, factor: float) -> Node:
    assert weight.value is not None
    value = weight.value.to(torch.float64) * factor
    return Node("weight", [], {}, weight.shape, "server", weight.path, f"{weight.name}*{factor:.6g}", value)
