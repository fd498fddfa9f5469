"""Linears that read the same value become one with their weights side by side (Q, K, V)."""

from __future__ import annotations

import torch

from ..graph import Builder, Node
from .rewrite import rewrite, users


def fuse_linears(outputs: list[Node]) -> list[Node]:
    readers = users(outputs)
    fused: dict[int, tuple[Node, int]] = {}  # linear -> (its group's weight, its first column)
    for group in readers.values():
        linears = list({id(n): n for n in group if n.op == "linear"}.values())
        if len(linears) < 2 or len({id(n.args[0]) for n in linears}) > 1:
            continue
        weights = [n.args[1] for n in linears]
        value = torch.cat([w.value for w in weights if w.value is not None], dim=1)
        name = "+".join(w.name for w in weights)
        weight = Node("weight", [], {}, tuple(value.shape), "server", weights[0].path, name, value)
        start = 0
        for linear in linears:
            fused[id(linear)] = (weight, start)
            start += linear.shape[-1]
    if not fused:
        return outputs
    builder, made = Builder(), {}
    plan = {id(node.args[1]): fused[id(node)] for nodes in readers.values() for node in nodes if id(node) in fused}

    def change(node: Node) -> Node | None:
        if node.op != "linear" or id(node.args[1]) not in plan:
            return None
        weight, start = plan[id(node.args[1])]
        builder.path = node.path
        key = (id(node.args[0]), id(weight))
        if key not in made:
            made[key] = builder.matmul(node.args[0], weight)
        return builder.slice(made[key], -1, start, start + node.shape[-1])

    return rewrite(outputs, change)
