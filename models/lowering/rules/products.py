"""Matrix products and Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...graph.graph import Node, derived
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
    left, vector = _as_matrix(lowering, x, 0)
    out = product(lowering, left, right)
    out = lowering.builder.reshape(out, out.shape[1:]) if vector else out
    return out if bias is None else b.add(out, lowering.as_node(bias))


@rule("matmul", "mm", "bmm", "mv", "dot")
def matmul(lowering: Lowering, x: Operand, y: Operand) -> Node:
    """A vector is a matrix of one row on the left, of one column on the right."""
    (left, row), (right, column) = _as_matrix(lowering, x, 0), _as_matrix(lowering, y, -1)
    out = product(lowering, left, right)
    kept = [size for d, size in enumerate(out.shape) if not (row and d == len(out.shape) - 2)]
    return lowering.builder.reshape(out, tuple(kept[:-1] if column else kept))


def _as_matrix(lowering: Lowering, x: Operand, dim: int) -> tuple[Node, bool]:
    """A factor, with one dimension more if it is a vector, and whether it is."""
    vector = len(lowering.as_node(x).shape) == 1
    if not vector:
        return lowering.as_node(x), False
    if isinstance(x, Value) and x.owner != "shared":
        return lowering.as_node(lowering.apply("aten.unsqueeze.default", x, dim)), True
    return lowering.builder.reshape(lowering.as_node(x), (1, -1) if dim == 0 else (-1, 1)), True


@rule("addmm", "baddbmm")
def addmm(lowering: Lowering, bias: Operand, x: Operand, y: Operand, *, beta: float = 1, alpha: float = 1) -> Node:
    product = lowering.builder.scale(matmul(lowering, x, y), float(alpha))
    return add(lowering, product, bias, alpha=beta)


def product(lowering: Lowering, x: Node, y: Node) -> Node:
    b = lowering.builder
    x, y = (_as_weight(lowering, side) if side.owner == "public" and side.op != "weight" else side for side in (x, y))
    if x.op == "weight" and y.owner == "shared" and (len(x.shape) == 2 or x.owner == "public"):  # W X = (X^T W^T)^T
        flipped = derived(_t(x.value), x.name, x)
        return b.transpose(b.matmul(b.transpose(y, -1, -2), flipped), -1, -2)
    return b.matmul(x, y)


def _as_weight(lowering: Lowering, matrix: Node) -> Node:
    """A public matrix, as a public weight; where there is none, as if it were the server's: one message, where two
    rescalings would be as many."""
    lowering.matrices += 1
    name, owner = f"matrix.{lowering.matrices}", "server" if lowering.public is None else "public"
    return Node("weight", [], {}, matrix.shape, owner, matrix.path, name, matrix.value)


def _t(value: Tensor | None) -> Tensor:
    assert value is not None
    return value.transpose(-1, -2)


# Fourier transforms: products with the matrices of cosines and sines. A complex value has a last dimension of two.


@rule("fft_fftn", "fft_fft2")
def fftn(
    lowering: Lowering,
    x: Operand,
    sizes: Sequence[int] | None = None,
    dims: Sequence[int] | None = None,
    norm: str | None = None,
) -> Node:
    """Of a real value, over these dimensions (default: all, and the last two)."""
    b, real = lowering.builder, lowering.as_node(x)
    count = len(real.shape)
    wanted = [d % count for d in (range(count) if dims is None else dims)]
    if sizes is not None and list(sizes) != [real.shape[d] for d in wanted]:
        raise lowering.fail("a Fourier transform of another size has no rule; pad or cut the input before it")
    imaginary: Node | None = None
    for dim in reversed(wanted):
        cosines, sines = (_times(lowering, real, dim, f, norm) for f in (torch.cos, torch.sin))
        if imaginary is None:
            real, imaginary = cosines, b.neg(sines)
        else:  # (r + i m)(C - i S)
            others = [_times(lowering, imaginary, dim, f, norm) for f in (torch.sin, torch.cos)]
            real, imaginary = b.add(cosines, others[0]), b.sub(others[1], sines)
    assert imaginary is not None
    return b.concat([b.reshape(part, (*part.shape, 1)) for part in (real, imaginary)], count)


@rule("fft_fft")
def fft(lowering: Lowering, x: Operand, size: int | None = None, dim: int = -1, norm: str | None = None) -> Node:
    return fftn(lowering, x, None if size is None else [size], [dim], norm)


@rule("view_as_real")
def view_as_real(lowering: Lowering, x: Operand) -> Node:
    return lowering.as_node(x)


@rule("real")
def real_part(lowering: Lowering, x: Operand) -> Node:
    return lowering.builder.select(lowering.as_node(x), -1, 0)


@rule("imag")
def imaginary_part(lowering: Lowering, x: Operand) -> Node:
    return lowering.builder.select(lowering.as_node(x), -1, 1)


def _times(lowering: Lowering, x: Node, dim: int, function: Callable[[Tensor], Tensor], norm: str | None) -> Node:
    """x times f(2 pi j k / N) along a dimension."""
    b, n = lowering.builder, x.shape[dim]
    angles = torch.outer(torch.arange(n, dtype=torch.float64), torch.arange(n, dtype=torch.float64)) % n
    scale = {"ortho": 1 / math.sqrt(n), "forward": 1 / n}.get(norm or "", 1.0)
    matrix = b.constant(function(angles * (2 * math.pi / n)) * scale)
    return b.transpose(product(lowering, b.transpose(x, dim, -1), matrix), dim, -1)
