"""Linears that read the same value become one with their weights side by side (Q, K, V).

Each weight first moves by a power of two to the finest one's unit, and its slice of the result back, which is free: so
quantised weights side by side need no more bits than each by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...program.encoding import quantised_scale
from ..graph import Builder, Node
from .rewrite import rewrite, users

MOST = 24  # fractional bits beyond which a weight counts as not quantised
LARGEST = 2.0**15  # whole number beyond which it does: every float32 is whole at some scale


def fuse_linears(outputs: list[Node]) -> list[Node]:
    readers = users(outputs)
    fused: dict[int, tuple[Node, int, int]] = {}  # linear -> (its group's weight, first column, power of two)
    for group in readers.values():
        linears = list({id(n): n for n in group if n.op == "linear" and len(n.args[1].shape) == 2}.values())
        if len(linears) < 2 or len({id(n.args[0]) for n in linears}) > 1:
            continue
        weights = [n.args[1] for n in linears]
        values = [w.value.double() for w in weights if w.value is not None]
        scales = [_scale(value) for value in values]
        powers = [0 if scale == MOST else min(scales) - scale for scale in scales]
        value = torch.cat([v * 2.0**-power for v, power in zip(values, powers, strict=True)], dim=1)
        name = "+".join(w.name for w in weights)
        weight = Node("weight", [], {}, tuple(value.shape), "server", weights[0].path, name, value)
        start = 0
        for linear, power in zip(linears, powers, strict=True):
            fused[id(linear)] = (weight, start, power)
            start += linear.shape[-1]
    if not fused:
        return outputs
    builder, products = Builder(), {}
    plan = {id(node.args[1]): fused[id(node)] for nodes in readers.values() for node in nodes if id(node) in fused}

    def change(node: Node) -> Node | None:
        if node.op != "linear" or id(node.args[1]) not in plan:
            return None
        weight, start, power = plan[id(node.args[1])]
        builder.path, builder.searching = node.path, node.search
        key = (id(node.args[0]), id(weight))
        if key not in products:
            products[key] = builder.matmul(node.args[0], weight)
        return builder.ldexp(builder.slice(products[key], -1, start, start + node.shape[-1]), power)

    return rewrite(outputs, change)


def _scale(value: Tensor) -> int:
    """Fractional bits of a quantised weight; MOST of another."""
    scale = quantised_scale(value, MOST)
    return scale if float(value.abs().max()) * 2.0**scale <= LARGEST else MOST
