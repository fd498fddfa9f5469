"""A norm's affine before a linear goes into the linear: (n g + b) W = n (g W) + b W.

The residual still reads n g + b, on the same one-sided opening of n, so the linear's own message disappears.
"""

from __future__ import annotations

import torch

from ..graph import Builder, Node
from .rewrite import rewrite


def fold_affines(outputs: list[Node]) -> list[Node]:
    builder = Builder()

    def change(node: Node) -> Node | None:
        if node.op != "linear" or len(node.args[1].shape) != 2:
            return None
        x, weight = node.args
        bias = None
        if x.op == "add" and x.args[1].op == "weight":
            x, bias = x.args
        if x.op != "mul_private" or x.args[1].owner != "server" or not _is_row(x.args[1], weight.shape[0]):
            return None
        if bias is not None and not _is_row(bias, weight.shape[0]):
            return None
        builder.path, builder.searching = node.path, node.search
        inner, gain = x.args
        assert weight.value is not None
        assert gain.value is not None
        value = weight.value.to(torch.float64)
        row = gain.value.to(torch.float64).reshape(-1, 1)
        folded = Node("weight", [], {}, weight.shape, "server", weight.path, f"{gain.name}@{weight.name}", value * row)
        out = builder.matmul(inner, folded)
        if bias is None:
            return out
        assert bias.value is not None
        shift = bias.value.to(torch.float64).reshape(1, -1) @ value
        name = f"{bias.name}@{weight.name}"
        return builder.add(
            out, Node("weight", [], {}, (weight.shape[1],), "server", node.path, name, shift.reshape(-1))
        )

    return rewrite(outputs, change)


def _is_row(node: Node, width: int) -> bool:
    return node.shape[-1:] == (width,) and torch.Size(node.shape).numel() == width
