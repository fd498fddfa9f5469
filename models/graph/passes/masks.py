"""A mask of keys moves from the scores to the values.

With weights a [.., queries, keys] and a mask m of keys (the same for every query),
    (a m) @ v = a @ (m v)    and    sum_keys (a m) = a @ m.
So the product with the mask touches keys x features instead of queries x keys numbers, and numerators and denominators
come out of one matrix product, a @ [m v | m]; where nothing is divided by, there are no sums and a @ (m v) is all.
"""

from __future__ import annotations

from ..graph import Builder, Node
from .rewrite import copy, users


def mask_values(outputs: list[Node]) -> list[Node]:
    outputs = copy(outputs)
    readers = users(outputs)
    candidates = {id(n): n for group in readers.values() for n in group}
    builder = Builder()
    for node in candidates.values():
        mixing, sums = _mixing_and_sums(node, readers.get(id(node), []))
        if mixing is None:
            continue
        builder.path, builder.searching = node.path, node.search
        weights, mask = node.args
        if not sums:
            _become(mixing, builder.matmul(weights, builder.mul(mixing.args[1], _column(mask))))
            continue
        product = _extended(builder, weights, mask, mixing.args[1])
        _become(mixing, builder.slice(product, -1, 0, mixing.shape[-1]))
        column = builder.slice(product, -1, product.shape[-1] - 1, product.shape[-1])
        for total in sums:
            _become(total, column if total.attributes["keepdim"] else builder.reshape(column, total.shape))
    return outputs


def _mixing_and_sums(node: Node, readers: list[Node]) -> tuple[Node | None, list[Node]]:
    """The matrix product and the sums over keys that read a client's key mask times weights, if nothing else does."""
    if node.op != "mul_private" or node.args[1].owner != "client":
        return None, []
    mask = node.args[1]
    if len(mask.shape) != len(node.shape) or mask.shape[-2] != 1 or mask.shape[-1] != node.shape[-1]:
        return None, []
    mixes = [r for r in readers if r.op == "matmul" and r.args[0] is node and r.args[1] is not node]
    sums = [r for r in readers if r.op == "sum" and r.attributes["dims"] == [len(node.shape) - 1]]
    if len(mixes) != 1 or len(mixes) + len(sums) != len(readers):
        return None, []
    return mixes[0], sums


def _extended(builder: Builder, weights: Node, mask: Node, values: Node) -> Node:
    """weights @ [mask * values | mask]."""
    column = _column(mask)
    wide = builder.expand(column, (*values.shape[:-1], 1))
    return builder.matmul(weights, builder.concat([builder.mul(values, column), wide], -1))


def _column(mask: Node) -> Node:
    """The client's mask of keys, standing beside the values."""
    assert mask.value is not None
    shape = (*mask.shape[:-2], mask.shape[-1], 1)
    name, value = f"{mask.name}.column", mask.value.transpose(-1, -2)
    return Node("client", [], {**mask.attributes, "transposed": mask.name}, shape, "client", mask.path, name, value)


def _become(node: Node, other: Node) -> None:
    node.op, node.args, node.attributes = other.op, other.args, other.attributes
