"""Matrix products, convolutions and embeddings."""

from __future__ import annotations

from torch import Tensor

from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand, Value
from . import rule
from .elementwise import add


@rule("linear")
def linear(lowering: Lowering, x: Operand, weight: Operand, bias: Operand | None = None) -> Node:
    b = lowering.builder
    if isinstance(weight, Value) and weight.owner in ("server", "public"):
        right = lowering.as_node(weight.with_tensor(lambda w: w.t()))
    else:
        right = b.transpose(lowering.as_node(weight), -1, -2)
    out = product(lowering, lowering.as_node(x), right)
    return out if bias is None else b.add(out, lowering.as_node(bias))


@rule("matmul", "mm", "bmm")
def matmul(lowering: Lowering, x: Operand, y: Operand) -> Node:
    return product(lowering, lowering.as_node(x), lowering.as_node(y))


@rule("addmm", "baddbmm")
def addmm(lowering: Lowering, bias: Operand, x: Operand, y: Operand, *, beta: float = 1, alpha: float = 1) -> Node:
    product = lowering.builder.scale(matmul(lowering, x, y), float(alpha))
    return add(lowering, product, bias, alpha=beta)


@rule("embedding")
def embedding(lowering: Lowering, table: Value, ids: Value, *options: object) -> Node:
    """A lookup in the server's table by the client's tokens: the one-hot matrix times the table."""
    rows = lowering.apply("aten.one_hot.default", ids, table.tensor.shape[0])
    return product(lowering, lowering.as_node(rows), lowering.as_node(table))


def product(lowering: Lowering, x: Node, y: Node) -> Node:
    b = lowering.builder
    if len(x.shape) == 1 or len(y.shape) == 1:
        raise lowering.fail("a product with a vector has no rule; unsqueeze it first")
    x, y = (_as_weight(lowering, side) if side.owner == "public" else side for side in (x, y))
    if x.owner == "server" and y.owner == "shared" and len(x.shape) == 2:  # W X = (X^T W^T)^T
        flipped = Node("weight", [], {}, tuple(reversed(x.shape)), "server", x.path, x.name, _t(x.value))
        return b.transpose(b.matmul(b.transpose(y, -1, -2), flipped), -1, -2)
    return b.matmul(x, y)


def _as_weight(lowering: Lowering, matrix: Node) -> Node:
    """A public matrix, as if it were the server's: one message, where two rescalings would be as many."""
    lowering.matrices += 1
    name = f"matrix.{lowering.matrices}"
    return Node("weight", [], {}, matrix.shape, "server", matrix.path, name, matrix.value)


def _t(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.t()
