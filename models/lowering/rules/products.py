"""Matrix products, convolutions and embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand, Value
from . import advise, rule
from .elementwise import add

advise("batch_norm", advice="fold it into the preceding linear layer before compiling")


def _weight(value: Value, layout: Callable[[Tensor], Tensor]) -> Value:
    """A parameter in another layout: the server's, folded now."""
    return Value(value.owner, layout(value.tensor), ref=value.ref or "folded", parameters=value.parameters)


@rule("linear")
def linear(lowering: Lowering, x: Operand, weight: Operand, bias: Operand | None = None) -> Node:
    b = lowering.builder
    if isinstance(weight, Value) and weight.owner in ("server", "public"):
        right = lowering.as_node(_weight(weight, lambda w: w.t()))
    else:
        right = b.transpose(lowering.as_node(weight), -1, -2)
    out = _product(lowering, lowering.as_node(x), right)
    return out if bias is None else b.add(out, lowering.as_node(bias))


@rule("matmul", "mm", "bmm")
def matmul(lowering: Lowering, x: Operand, y: Operand) -> Node:
    return _product(lowering, lowering.as_node(x), lowering.as_node(y))


@rule("addmm", "baddbmm")
def addmm(lowering: Lowering, bias: Operand, x: Operand, y: Operand, *, beta: float = 1, alpha: float = 1) -> Node:
    product = lowering.builder.scale(matmul(lowering, x, y), float(alpha))
    return add(lowering, product, bias, alpha=beta)


@rule("conv2d", "convolution")
def conv2d(
    lowering: Lowering,
    x: Operand,
    weight: Value,
    bias: Operand | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] | str = (0, 0),
    dilation: Sequence[int] = (1, 1),
    *rest: object,
) -> Node:
    """Patches times the kernel as a matrix: [B, C, H, W] -> [B, O, H', W']. `rest` ends with the number of groups."""
    plain = not rest or (rest[-1] == 1 and not (len(rest) > 1 and rest[0]))  # convolution has `transposed` first
    if any(d != 1 for d in dilation) or not plain or isinstance(padding, str) or weight.owner != "server":
        raise lowering.fail("a convolution with groups, dilation or a padding mode has no rule; use a plain one")
    b, kernel = lowering.builder, list(weight.tensor.shape[2:])
    strides, paddings = (list(v) * (2 // len(v)) for v in (stride, padding))
    right = lowering.as_node(_weight(weight, lambda w: w.flatten(1).t()))
    out = _product(lowering, _patches(lowering, x, kernel, strides, paddings), right)
    if bias is not None:
        out = b.add(out, lowering.as_node(bias))
    return b.permute(out, [0, 3, 1, 2])


def _patches(lowering: Lowering, x: Operand, kernel: list[int], stride: list[int], padding: list[int]) -> Node:
    """Patches of a secret image; of the client's own image, the client cuts them in the clear."""
    node = lowering.builder.unfold(lowering.as_node(x), kernel, stride, padding)
    if not isinstance(x, Value) or x.owner != "client":
        return node
    name = f"{x.ref}.patches.{len(lowering.steps)}"
    # [B, C kh kw, H' W']
    columns = lowering.step(f"{name}.columns", "aten.im2col.default", x, kernel, [1, 1], padding, stride)
    rows = lowering.step(f"{name}.rows", "aten.transpose.int", columns, 1, 2)
    return lowering.as_node(lowering.step(name, "aten.reshape.default", rows, list(node.shape)))


@rule("embedding")
def embedding(lowering: Lowering, table: Value, ids: Value, *options: object) -> Node:
    """A lookup in the server's table by the client's tokens: the one-hot matrix times the table."""
    rows = lowering.apply("aten.one_hot.default", ids, table.tensor.shape[0])
    return _product(lowering, lowering.as_node(rows), lowering.as_node(table))


def _product(lowering: Lowering, x: Node, y: Node) -> Node:
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
