"""Rearrangements and reductions: local on shares."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...graph import Node
from ...program import PreludeStep
from . import rule


@rule(
    "contiguous", "clone", "alias", "detach", "detach_", "to", "_to_copy", "dropout", "type_as", "lift_fresh_copy",
    "lift_fresh", "feature_dropout", "native_dropout",
)  # fmt: skip
def same(lowering: Any, x: Any, *options: Any, **named: Any) -> Node:
    """Copies, and conversions between real types (a comparison's result is 0 or 1 already)."""
    return lowering.as_node(x)


@rule("view", "reshape", "_unsafe_view")
def view(lowering: Any, x: Any, shape: Any) -> Node:
    return lowering.builder.reshape(lowering.as_node(x), tuple(shape))


@rule("flatten")
def flatten(lowering: Any, x: Any, start: int = 0, end: int = -1) -> Node:
    node = lowering.as_node(x)
    shape = torch.empty(node.shape, device="meta").flatten(start, end).shape
    return lowering.builder.reshape(node, tuple(shape))


@rule("unflatten")
def unflatten(lowering: Any, x: Any, dim: int, sizes: Any) -> Node:
    node = lowering.as_node(x)
    shape = torch.empty(node.shape, device="meta").unflatten(dim, tuple(sizes)).shape
    return lowering.builder.reshape(node, tuple(shape))


@rule("permute")
def permute(lowering: Any, x: Any, dims: Any) -> Node:
    return lowering.builder.permute(lowering.as_node(x), list(dims))


@rule("transpose")
def transpose(lowering: Any, x: Any, a: int, b: int) -> Node:
    return lowering.builder.transpose(lowering.as_node(x), a, b)


@rule("t", "numpy_T", "mT")
def t(lowering: Any, x: Any) -> Node:
    return lowering.builder.transpose(lowering.as_node(x), -1, -2)


@rule("unsqueeze")
def unsqueeze(lowering: Any, x: Any, dim: int) -> Node:
    node = lowering.as_node(x)
    dim %= len(node.shape) + 1
    return lowering.builder.reshape(node, (*node.shape[:dim], 1, *node.shape[dim:]))


@rule("squeeze")
def squeeze(lowering: Any, x: Any, dim: Any = None) -> Node:
    node = lowering.as_node(x)
    empty = torch.empty(node.shape, device="meta")
    return lowering.builder.reshape(node, tuple((empty.squeeze() if dim is None else empty.squeeze(dim)).shape))


@rule("expand", "expand_as")
def expand(lowering: Any, x: Any, shape: Any, **named: Any) -> Node:
    return lowering.builder.expand(lowering.as_node(x), tuple(getattr(shape, "shape", shape)))


@rule("repeat_interleave")
def repeat_interleave(lowering: Any, x: Any, repeats: int, dim: int = 0, **named: Any) -> Node:
    node = lowering.as_node(x)
    indices = [i for i in range(node.shape[dim]) for _ in range(repeats)]
    return lowering.builder.index(node, dim, indices)


@rule("slice")
def slice_(lowering: Any, x: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> Node:
    node = lowering.as_node(x)
    return lowering.builder.slice(node, dim, start or 0, node.shape[dim] if stop is None else stop, step)


@rule("select")
def select(lowering: Any, x: Any, dim: int, index: Any) -> Node:
    return lowering.builder.select(lowering.as_node(x), dim, int(getattr(index, "value", index)))


@rule("index_select")
def index_select(lowering: Any, x: Any, dim: int, indices: Any) -> Node:
    return lowering.builder.index(lowering.as_node(x), dim, _public_indices(lowering, indices))


@rule("index")
def index(lowering: Any, x: Any, indices: Any) -> Node:
    """x[:, i] and the like: one public index vector; or one row per batch element, as in x[arange, lengths]."""
    used = [(dim, i) for dim, i in enumerate(indices) if i is not None]
    if len(used) == 1:
        dim, wanted = used[0]
        return lowering.builder.index(lowering.as_node(x), dim, _public_indices(lowering, wanted))
    return _rows(lowering, lowering.as_node(x), used)


def _rows(lowering: Any, node: Node, used: list[tuple[int, Any]]) -> Node:
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


def _counts(rows: Any, batch: int) -> bool:
    return rows.owner == "public" and rows.value.tolist() == list(range(batch))


def _own_rows(lowering: Any, node: Node, columns: Any) -> Node:
    """x[arange(B), j] with the client's j [B]: x times a one-hot mask, which the client makes, summed over rows."""
    from ..lower import Value

    b, name, count = lowering.builder, f"{columns.ref}.one_hot.{len(lowering.steps)}", node.shape[1]
    places = torch.nn.functional.one_hot(columns.value, count).reshape(-1, count, *[1] * (len(node.shape) - 2))
    lowering.steps += [
        PreludeStep(name=f"{name}.flat", target="aten.one_hot.default", args=[{"ref": columns.ref}, count]),
        PreludeStep(name=name, target="aten.reshape.default", args=[{"ref": f"{name}.flat"}, list(places.shape)]),
    ]
    mask = lowering.as_node(Value("client", places, ref=name, binary=True))
    return b.sum(b.mul(node, mask), [1], keepdim=False)


def _public_indices(lowering: Any, indices: Any) -> list[int]:
    if indices.owner != "public":
        raise lowering.fail(
            f"indexing a secret by a value of the {indices.owner}; multiply by a one-hot mask and sum instead"
        )
    value = indices.value
    if value.dim() != 1:
        raise lowering.fail(f"indexing by a tensor of {value.dim()} dimensions; use a vector")
    return value.nonzero().flatten().tolist() if value.dtype == torch.bool else value.tolist()


@rule("slice_scatter")
def slice_scatter(
    lowering: Any, x: Any, source: Any, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> Node:
    """x with a slice of it replaced: what is left of a write to a view."""
    node = lowering.as_node(x)
    return _replaced(lowering, node, source, dim, list(range(node.shape[dim])[slice(start, stop, step)]))


@rule("select_scatter")
def select_scatter(lowering: Any, x: Any, source: Any, dim: int, index: int) -> Node:
    return _replaced(lowering, lowering.as_node(x), unsqueeze(lowering, source, dim), dim, [index])


@rule("index_put")
def index_put(lowering: Any, x: Any, indices: Any, values: Any, accumulate: bool = False) -> Node:
    """x[:, i] = values with a public vector i; x[bits] = number with bits that somebody has in the clear."""
    used = [(dim, i) for dim, i in enumerate(indices) if i is not None]
    if len(used) != 1 or accumulate:
        raise lowering.fail("a write at several indices has a rule for one vector of them, without accumulate")
    dim, wanted = used[0]
    bits, number = wanted.value, values.value
    if isinstance(bits, Tensor) and bits.dtype == torch.bool and isinstance(number, Tensor) and number.numel() == 1:
        rest = len(lowering.as_node(x).shape) - dim - bits.dim()
        where = lowering.apply("aten.reshape.default", wanted, [*bits.shape, *[1] * rest])
        return lowering.rules.find("where")(lowering, where, lowering.apply("aten.reshape.default", values, []), x)
    return _replaced(lowering, lowering.as_node(x), values, dim, _public_indices(lowering, wanted))


def _replaced(lowering: Any, node: Node, source: Any, dim: int, places: list[int]) -> Node:
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
def copy(lowering: Any, x: Any, source: Any, *options: Any) -> Node:
    """The source, in the shape of x."""
    return lowering.builder.expand(lowering.as_node(source), lowering.as_node(x).shape)


@rule("fill")
def fill(lowering: Any, x: Any, value: Any) -> Node:
    return copy(lowering, x, value)


@rule("cat", "concat")
def concat(lowering: Any, xs: Any, dim: int = 0) -> Node:
    return lowering.builder.concat([lowering.as_node(x) for x in xs], dim)


@rule("stack")
def stack(lowering: Any, xs: Any, dim: int = 0) -> Node:
    return lowering.builder.concat([unsqueeze(lowering, x, dim) for x in xs], dim)


@rule("split", "split_with_sizes")
def split(lowering: Any, x: Any, sizes: Any, dim: int = 0) -> list[Node]:
    node = lowering.as_node(x)
    total = node.shape[dim]
    parts = list(sizes) if isinstance(sizes, list | tuple) else [min(sizes, total - i) for i in range(0, total, sizes)]
    ends = [sum(parts[: i + 1]) for i in range(len(parts))]
    return [lowering.builder.slice(node, dim, e - n, e) for e, n in zip(ends, parts, strict=True)]


@rule("chunk")
def chunk(lowering: Any, x: Any, chunks: int, dim: int = 0) -> list[Node]:
    """At most so many parts, all but the last of one size."""
    return split(lowering, x, -(-lowering.as_node(x).shape[dim] // chunks), dim)


@rule("unbind")
def unbind(lowering: Any, x: Any, dim: int = 0) -> list[Node]:
    node = lowering.as_node(x)
    return [lowering.builder.select(node, dim, i) for i in range(node.shape[dim])]


@rule("sum")
def total(lowering: Any, x: Any, dims: Any = None, keepdim: bool = False, **named: Any) -> Node:
    node = lowering.as_node(x)
    return lowering.builder.sum(node, _dims(node, dims), keepdim)


@rule("mean")
def mean(lowering: Any, x: Any, dims: Any = None, keepdim: bool = False, **named: Any) -> Node:
    node = lowering.as_node(x)
    found = _dims(node, dims)
    count = math.prod(node.shape[d] for d in found)
    return lowering.builder.scale(lowering.builder.sum(node, found, keepdim), 1.0 / count)


@rule("amax")
def amax(lowering: Any, x: Any, dims: Any = (), keepdim: bool = False) -> Node:
    node = lowering.as_node(x)
    for dim in sorted(_dims(node, dims), reverse=True):
        node = lowering.builder.maximum(node, dim, keepdim)
    return node


@rule("argmax")
def argmax(lowering: Any, x: Any, dim: int | None = None, keepdim: bool = False) -> Node:
    node, b = lowering.as_node(x), lowering.builder
    if dim is None:
        return b.argmax(b.reshape(node, (math.prod(node.shape),)), 0, False)
    return b.argmax(node, dim, keepdim)


def _dims(node: Node, dims: Any) -> list[int]:
    if dims is None or (isinstance(dims, list | tuple) and not dims):
        return list(range(len(node.shape)))
    return [dims] if isinstance(dims, int) else list(dims)
