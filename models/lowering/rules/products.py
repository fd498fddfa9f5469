"""Matrix products, convolutions and embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...graph import Node
from ...program import PreludeStep
from . import rule
from .elementwise import add


def _weight(lowering: Any, value: Any, transform: Any) -> Any:
    """A parameter in another layout: the server's, folded now."""
    from ..lower import Value

    name = f"{value.ref or 'folded'}"
    return Value(value.owner, transform(value.value), ref=name, parameters=value.parameters)


@rule("linear")
def linear(lowering: Any, x: Any, weight: Any, bias: Any = None) -> Node:
    b = lowering.builder
    if weight.owner in ("server", "public"):
        right = lowering.as_node(_weight(lowering, weight, lambda w: w.t()))
    else:
        right = b.transpose(lowering.as_node(weight), -1, -2)
    out = _product(lowering, lowering.as_node(x), right)
    return out if bias is None else b.add(out, lowering.as_node(bias))


@rule("matmul", "mm", "bmm")
def matmul(lowering: Any, x: Any, y: Any) -> Node:
    return _product(lowering, lowering.as_node(x), lowering.as_node(y))


@rule("addmm", "baddbmm")
def addmm(lowering: Any, bias: Any, x: Any, y: Any, *, beta: float = 1, alpha: float = 1) -> Node:
    product = lowering.builder.scale(_product(lowering, lowering.as_node(x), lowering.as_node(y)), float(alpha))
    return add(lowering, product, bias, alpha=beta)


@rule("conv2d", "convolution")
def conv2d(
    lowering: Any,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    *rest: Any,
) -> Node:
    """Patches times the kernel as a matrix: [B, C, H, W] -> [B, O, H', W']."""
    groups = rest[-1] if rest else 1
    if any(d != 1 for d in dilation) or groups != 1 or isinstance(padding, str) or weight.owner != "server":
        raise lowering.fail("a convolution with groups, dilation or a padding mode has no rule; use a plain one")
    b, kernel = lowering.builder, list(weight.value.shape[2:])
    pair = [list(v) * (2 // len(v)) for v in (stride, padding)]
    right = lowering.as_node(_weight(lowering, weight, lambda w: w.flatten(1).t()))
    out = _product(lowering, _patches(lowering, x, kernel, *pair), right)
    if bias is not None:
        out = b.add(out, lowering.as_node(bias))
    return b.permute(out, [0, 3, 1, 2])


def _patches(lowering: Any, x: Any, kernel: list[int], stride: list[int], padding: list[int]) -> Node:
    """Patches of a secret image; of the client's own image, the client cuts them in the clear."""
    from ..lower import Value

    b = lowering.builder
    if x.owner != "client":
        return b.unfold(lowering.as_node(x), kernel, stride, padding)
    node = b.unfold(lowering.as_node(x), kernel, stride, padding)
    # [B, C kh kw, H' W']
    value = torch.nn.functional.unfold(x.value, (*kernel,), padding=(*padding,), stride=(*stride,))
    name = f"{x.ref}.patches.{len(lowering.steps)}"
    lowering.steps += [
        PreludeStep(
            name=f"{name}.columns", target="aten.im2col.default", args=[{"ref": x.ref}, kernel, [1, 1], padding, stride]
        ),
        PreludeStep(name=f"{name}.rows", target="aten.transpose.int", args=[{"ref": f"{name}.columns"}, 1, 2]),
        PreludeStep(name=name, target="aten.reshape.default", args=[{"ref": f"{name}.rows"}, list(node.shape)]),
    ]
    return lowering.as_node(Value("client", value.transpose(1, 2).reshape(node.shape), ref=name))


@rule("embedding")
def embedding(lowering: Any, table: Any, ids: Any, *options: Any) -> Node:
    """A lookup in the server's table by the client's tokens: the one-hot matrix times the table."""
    from ..lower import Value

    name, count = f"{ids.ref}.one_hot.{len(lowering.steps)}", table.value.shape[0]
    lowering.steps.append(PreludeStep(name=name, target="aten.one_hot.default", args=[{"ref": ids.ref}, count]))
    rows = torch.nn.functional.one_hot(ids.value, count)
    return _product(lowering, lowering.as_node(Value("client", rows, ref=name)), lowering.as_node(table))


def _product(lowering: Any, x: Node, y: Node) -> Node:
    b = lowering.builder
    if len(x.shape) == 1 or len(y.shape) == 1:
        raise lowering.fail("a product with a vector has no rule; unsqueeze it first")
    if y.owner == "public" and x.owner == "shared":
        raise lowering.fail("a matrix product with a public matrix has no rule; make it a parameter")
    if x.owner == "server" and y.owner == "shared" and len(x.shape) == 2:  # W X = (X^T W^T)^T
        flipped = Node("weight", [], {}, tuple(reversed(x.shape)), "server", x.path, x.name, _t(x.value))
        return b.transpose(b.matmul(b.transpose(y, -1, -2), flipped), -1, -2)
    return b.matmul(x, y)


def _t(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.t()
