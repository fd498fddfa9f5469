"""A product with rows of several owners becomes a product with each.

Keys and values of a decoder are joined from the model's own (a prefix), those kept, and new ones. Joined, they are one
secret that is opened anew for every token. Apart, the model's own are a weight and cost no opening, and those kept are
open already:
    q [a; b]^T = [q a^T, q b^T]    and    [p, r] [a; b] = p a + r b.
"""

from __future__ import annotations

from ..graph import Builder, Node
from .rewrite import rewrite

APART = ("weight", "state")


def split_products(outputs: list[Node]) -> list[Node]:
    builder = Builder()

    def change(node: Node) -> Node | None:
        if node.op != "matmul":
            return None
        builder.path, builder.searching = node.path, node.search
        x, y = node.args
        joined, dims = (y.args[0], y.attributes["dims"]) if y.op == "permute" else (y, list(range(len(y.shape))))
        parts = _parts(joined)
        if not any(part.op in APART for part in parts):
            return None
        dim = dims.index(joined.attributes["dim"])
        moved = [_permuted(builder, part, dims) for part in parts]
        if dim == len(dims) - 1:
            return builder.concat([builder.matmul(x, part) for part in moved], -1)
        if dim != len(dims) - 2:
            return None
        total, start = None, 0
        for part in moved:
            stop = start + part.shape[-2]
            product = builder.matmul(builder.slice(x, -1, start, stop), part)
            total, start = product if total is None else builder.add(total, product), stop
        return total

    return rewrite(outputs, change)


def _parts(node: Node) -> list[Node]:
    """What a value is joined from, in order."""
    if node.op != "concat":
        return []
    parts: list[Node] = []
    for arg in node.args:
        inner = arg.op == "concat" and arg.attributes["dim"] == node.attributes["dim"]
        parts += _parts(arg) if inner else [arg]
    return [part for part in parts if part.shape[node.attributes["dim"]]]


def _permuted(builder: Builder, node: Node, dims: list[int]) -> Node:
    if node.op != "weight" or dims == sorted(dims):
        return builder.permute(node, dims)
    assert node.value is not None
    value, name = node.value.permute(dims), f"{node.name}.permuted"
    return Node("weight", [], node.attributes, tuple(value.shape), node.owner, node.path, name, value)
