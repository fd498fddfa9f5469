"""Rearrangements and reductions: local on shares."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand, Value
from . import advise, rule
from .masks import where

advise("sort", advice="sorting secrets is not offered; use amax or a comparison with a constant")
advise("topk", advice="sorting secrets is not offered; take the largest logits at the client")

Shape = Sequence[int]
Dims = Sequence[int] | int | None
Bound = int | None
Indices = Sequence[Value | None]


@rule(
    "contiguous", "clone", "alias", "detach", "detach_", "to", "_to_copy", "dropout", "type_as", "lift_fresh_copy",
    "lift_fresh", "feature_dropout", "native_dropout",
)  # fmt: skip
def same(lowering: Lowering, x: Operand, *options: object, **named: object) -> Node:
    """Copies, and conversions between real types (a comparison's result is 0 or 1 already)."""
    return lowering.as_node(x)


@rule("view", "reshape", "_unsafe_view")
def view(lowering: Lowering, x: Operand, shape: Shape) -> Node:
    return lowering.builder.reshape(lowering.as_node(x), tuple(shape))


@rule("flatten")
def flatten(lowering: Lowering, x: Operand, start: int = 0, end: int = -1) -> Node:
    node = lowering.as_node(x)
    shape = torch.empty(node.shape, device="meta").flatten(start, end).shape
    return lowering.builder.reshape(node, tuple(shape))


@rule("unflatten")
def unflatten(lowering: Lowering, x: Operand, dim: int, sizes: Shape) -> Node:
    node = lowering.as_node(x)
    shape = torch.empty(node.shape, device="meta").unflatten(dim, tuple(sizes)).shape
    return lowering.builder.reshape(node, tuple(shape))


@rule("permute")
def permute(lowering: Lowering, x: Operand, dims: Shape) -> Node:
    return lowering.builder.permute(lowering.as_node(x), list(dims))


@rule("transpose")
def transpose(lowering: Lowering, x: Operand, a: int, b: int) -> Node:
    return lowering.builder.transpose(lowering.as_node(x), a, b)


@rule("t", "numpy_T", "mT")
def t(lowering: Lowering, x: Operand) -> Node:
    return lowering.builder.transpose(lowering.as_node(x), -1, -2)


@rule("unsqueeze")
def unsqueeze(lowering: Lowering, x: Operand, dim: int) -> Node:
    node = lowering.as_node(x)
    dim %= len(node.shape) + 1
    return lowering.builder.reshape(node, (*node.shape[:dim], 1, *node.shape[dim:]))


@rule("squeeze")
def squeeze(lowering: Lowering, x: Operand, dim: int | Sequence[int] | None = None) -> Node:
    node = lowering.as_node(x)
    dims = range(len(node.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    shape = torch.empty(node.shape, device="meta").squeeze(tuple(dims)).shape
    return lowering.builder.reshape(node, tuple(shape))


@rule("expand", "expand_as")
def expand(lowering: Lowering, x: Operand, shape: Shape | Value | Node, **named: object) -> Node:
    sizes = lowering.as_node(shape).shape if isinstance(shape, Value | Node) else shape
    return lowering.builder.expand(lowering.as_node(x), tuple(sizes))


@rule("repeat_interleave")
def repeat_interleave(lowering: Lowering, x: Operand, repeats: int, dim: int = 0, **named: object) -> Node:
    node = lowering.as_node(x)
    indices = [i for i in range(node.shape[dim]) for _ in range(repeats)]
    return lowering.builder.index(node, dim, indices)


@rule("slice")
def slice_(
    lowering: Lowering, x: Operand, dim: int = 0, start: Bound = None, stop: Bound = None, step: int = 1
) -> Node:
    node = lowering.as_node(x)
    return lowering.builder.slice(node, dim, start or 0, node.shape[dim] if stop is None else stop, step)


@rule("select")
def select(lowering: Lowering, x: Operand, dim: int, index: int | Value) -> Node:
    return lowering.builder.select(lowering.as_node(x), dim, int(index.tensor if isinstance(index, Value) else index))


@rule("index_select")
def index_select(lowering: Lowering, x: Operand, dim: int, indices: Value) -> Node:
    return lowering.builder.index(lowering.as_node(x), dim, _public_indices(lowering, indices))


@rule("index")
def index(lowering: Lowering, x: Operand, indices: Indices) -> Node:
    """x[:, i] and the like: one public index vector; or one row per batch element, as in x[arange, lengths]."""
    used = [(dim, i) for dim, i in enumerate(indices) if i is not None]
    if len(used) == 1:
        dim, wanted = used[0]
        return lowering.builder.index(lowering.as_node(x), dim, _public_indices(lowering, wanted))
    return _rows(lowering, lowering.as_node(x), used)


def _rows(lowering: Lowering, node: Node, used: list[tuple[int, Value]]) -> Node:
    """x[i, j] over the first two dimensions: public i and j; or i that counts the batch, and the client's own j."""
    if [dim for dim, _ in used] != [0, 1]:
        raise lowering.fail("indexing by several vectors has a rule for the first two dimensions only")
    if used[1][1].owner == "client" and _counts(used[0][1], node.shape[0]):
        return _own_rows(lowering, node, used[1][1])
    rows, columns = (torch.as_tensor(_public_indices(lowering, i)) for _, i in used)
    rows, columns = torch.broadcast_tensors(rows, columns)
    flat = (rows % node.shape[0]) * node.shape[1] + columns % node.shape[1]
    b = lowering.builder
    return b.index(b.reshape(node, (node.shape[0] * node.shape[1], *node.shape[2:])), 0, flat.tolist())


def _counts(rows: Value, batch: int) -> bool:
    return rows.owner == "public" and rows.tensor.tolist() == list(range(batch))


def _own_rows(lowering: Lowering, node: Node, columns: Value) -> Node:
    """x[arange(B), j] with the client's j [B]: x times a one-hot mask, which the client makes, summed over rows."""
    b, name, count = lowering.builder, f"{columns.ref}.one_hot.{len(lowering.steps)}", node.shape[1]
    flat = lowering.step(f"{name}.flat", "aten.one_hot.default", columns, count)
    shape = [columns.tensor.numel(), count, *[1] * (len(node.shape) - 2)]
    mask = lowering.step(name, "aten.reshape.default", flat, shape)
    mask.binary = True
    return b.sum(b.mul(node, lowering.as_node(mask)), [1], keepdim=False)


def _public_indices(lowering: Lowering, indices: Value) -> list[int]:
    if indices.owner != "public":
        raise lowering.fail(
            f"indexing a secret by a value of the {indices.owner}; multiply by a one-hot mask and sum instead"
        )
    value = indices.tensor
    if value.dim() != 1:
        raise lowering.fail(f"indexing by a tensor of {value.dim()} dimensions; use a vector")
    return value.nonzero().flatten().tolist() if value.dtype == torch.bool else value.tolist()


@rule("slice_scatter")
def slice_scatter(
    lowering: Lowering,
    x: Operand,
    source: Operand,
    dim: int = 0,
    start: Bound = None,
    stop: Bound = None,
    step: int = 1,
) -> Node:
    """x with a slice of it replaced: what is left of a write to a view."""
    node = lowering.as_node(x)
    return _replaced(lowering, node, source, dim, list(range(node.shape[dim])[slice(start, stop, step)]))


@rule("select_scatter")
def select_scatter(lowering: Lowering, x: Operand, source: Operand, dim: int, index: int) -> Node:
    return _replaced(lowering, lowering.as_node(x), unsqueeze(lowering, source, dim), dim, [index])


@rule("index_put")
def index_put(lowering: Lowering, x: Operand, indices: Indices, values: Value, accumulate: bool = False) -> Node:
    """x[:, i] = values with a public vector i; x[bits] = number with bits that somebody has in the clear."""
    used = [(dim, i) for dim, i in enumerate(indices) if i is not None]
    if len(used) != 1 or accumulate:
        raise lowering.fail("a write at several indices has a rule for one vector of them, without accumulate")
    dim, wanted = used[0]
    bits, number = wanted.value, values.value
    if isinstance(bits, Tensor) and bits.dtype == torch.bool and isinstance(number, Tensor) and number.numel() == 1:
        rest = len(lowering.as_node(x).shape) - dim - bits.dim()
        places = lowering.apply("aten.reshape.default", wanted, [*bits.shape, *[1] * rest])
        return where(lowering, places, lowering.apply("aten.reshape.default", values, []), x)
    return _replaced(lowering, lowering.as_node(x), values, dim, _public_indices(lowering, wanted))


def _replaced(lowering: Lowering, node: Node, source: Operand, dim: int, places: list[int]) -> Node:
    """The node with these places of a dimension replaced, in order, by those of the source."""
    b, size = lowering.builder, node.shape[dim]
    shape = list(node.shape)
    shape[dim] = len(places)
    wide = b.concat([node, b.expand(lowering.as_node(source), tuple(shape))], dim)
    now = list(range(size))
    for number, place in enumerate(places):
        now[place] = size + number
    return b.index(wide, dim, now)


@rule("copy")
def copy(lowering: Lowering, x: Operand, source: Operand, *options: object) -> Node:
    """The source, in the shape of x."""
    return lowering.builder.expand(lowering.as_node(source), lowering.as_node(x).shape)


@rule("fill")
def fill(lowering: Lowering, x: Operand, value: Operand) -> Node:
    return copy(lowering, x, value)


@rule("cat", "concat")
def concat(lowering: Lowering, xs: Sequence[Operand], dim: int = 0) -> Node:
    return lowering.builder.concat([lowering.as_node(x) for x in xs], dim)


@rule("stack")
def stack(lowering: Lowering, xs: Sequence[Operand], dim: int = 0) -> Node:
    return lowering.builder.concat([unsqueeze(lowering, x, dim) for x in xs], dim)


@rule("split", "split_with_sizes")
def split(lowering: Lowering, x: Operand, sizes: int | Sequence[int], dim: int = 0) -> list[Node]:
    node = lowering.as_node(x)
    total = node.shape[dim]
    parts = [min(sizes, total - i) for i in range(0, total, sizes)] if isinstance(sizes, int) else list(sizes)
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    return [lowering.builder.slice(node, dim, e - n, e) for e, n in zip(ends, parts, strict=True)]


@rule("chunk")
def chunk(lowering: Lowering, x: Operand, chunks: int, dim: int = 0) -> list[Node]:
    """At most so many parts, all but the last of one size."""
    return split(lowering, x, -(-lowering.as_node(x).shape[dim] // chunks), dim)


@rule("unbind")
def unbind(lowering: Lowering, x: Operand, dim: int = 0) -> list[Node]:
    node = lowering.as_node(x)
    return [lowering.builder.select(node, dim, i) for i in range(node.shape[dim])]


@rule("sum")
def total(lowering: Lowering, x: Operand, dims: Dims = None, keepdim: bool = False, **named: object) -> Node:
    node = lowering.as_node(x)
    return lowering.builder.sum(node, _dims(node, dims), keepdim)


@rule("mean")
def mean(lowering: Lowering, x: Operand, dims: Dims = None, keepdim: bool = False, **named: object) -> Node:
    node = lowering.as_node(x)
    found = _dims(node, dims)
    count = math.prod(node.shape[d] for d in found)
    return lowering.builder.scale(lowering.builder.sum(node, found, keepdim), 1.0 / count)


@rule("amax")
def amax(lowering: Lowering, x: Operand, dims: Dims = (), keepdim: bool = False) -> Node:
    node = lowering.as_node(x)
    for dim in sorted(_dims(node, dims), reverse=True):
        node = lowering.builder.maximum(node, dim, keepdim)
    return node


@rule("argmax")
def argmax(lowering: Lowering, x: Operand, dim: int | None = None, keepdim: bool = False) -> Node:
    node, b = lowering.as_node(x), lowering.builder
    if dim is None:
        return b.argmax(b.reshape(node, (math.prod(node.shape),)), 0, False)
    return b.argmax(node, dim, keepdim)


def _dims(node: Node, dims: Dims) -> list[int]:
    if isinstance(dims, int):
        return [dims]
    return list(dims or range(len(node.shape)))
