"""Places of a tensor by their indices: public ones, the client's own, and secret ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ...graph.ends import ends
from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand, Value, owner_of
from . import rule
from .elementwise import where
from .extremes import steps
from .products import product
from .shapes import unsqueeze

Bound = int | None
Indices = Sequence[Value | None]
OPEN = "register a buffer that is no secret with persistent=False, or open it (--weights NAME=public)"


@rule("repeat_interleave")
def repeat_interleave(lowering: Lowering, x: Operand, repeats: int, dim: int | None = None, **named: object) -> Node:
    """Without `dim` of all values, in one dimension."""
    node = lowering.as_node(x)
    if dim is None:
        node, dim = lowering.builder.reshape(node, (math.prod(node.shape),)), 0
    return lowering.builder.index(node, dim, [i for i in range(node.shape[dim]) for _ in range(repeats)])


@rule("repeat")
def repeat(lowering: Lowering, x: Operand, times: Sequence[int]) -> Node:
    """As often in each dimension, of which there may be more in front."""
    b, node = lowering.builder, lowering.as_node(x)
    node = b.reshape(node, (*[1] * (len(times) - len(node.shape)), *node.shape))
    for dim, count in enumerate(times):
        if count != 1 and node.shape[dim] == 1:
            node = b.expand(node, (*node.shape[:dim], count, *node.shape[dim + 1 :]))
        elif count != 1:
            node = b.concat([node] * count, dim)
    return node


@rule("roll")
def roll(lowering: Lowering, x: Operand, shifts: Sequence[int], dims: Sequence[int] = ()) -> Node:
    b, node = lowering.builder, lowering.as_node(x)
    if not dims:
        flat = b.reshape(node, (math.prod(node.shape),))
        return b.reshape(roll(lowering, flat, shifts, [0]), node.shape)
    for shift, dim in zip(shifts, dims, strict=True):
        size = node.shape[dim]
        node = b.index(node, dim, [(i - shift) % size for i in range(size)])
    return node


@rule("flip")
def flip(lowering: Lowering, x: Operand, dims: Sequence[int]) -> Node:
    node = lowering.as_node(x)
    for dim in dims:
        node = lowering.builder.index(node, dim, list(reversed(range(node.shape[dim]))))
    return node


@rule("constant_pad_nd")
def constant_pad_nd(lowering: Lowering, x: Operand, sizes: Sequence[int], value: float = 0.0) -> Node:
    """`sizes`: before and after, from the last dimension on; below 0, as much is cut off."""
    b, node = lowering.builder, lowering.as_node(x)
    for number in range(len(sizes) // 2):
        dim = len(node.shape) - 1 - number
        before, after = sizes[2 * number : 2 * number + 2]
        node = b.slice(node, dim, max(-before, 0), node.shape[dim] - max(-after, 0))
        parts = [node]
        for size, front in ((before, True), (after, False)):
            if size > 0:
                shape = (*node.shape[:dim], size, *node.shape[dim + 1 :])
                parts.insert(0 if front else len(parts), b.constant(torch.full(shape, float(value))))
        node = b.concat(parts, dim)
    return node


@rule("select")
def select(lowering: Lowering, x: Operand, dim: int, place: int | Value) -> Node:
    node = lowering.as_node(x)
    if not isinstance(place, Value) or place.owner == "public":
        return lowering.builder.select(node, dim, int(place.tensor if isinstance(place, Value) else place))
    if isinstance(place.value, int):  # that the server has read of a tensor
        place = Value(place.owner, torch.tensor(place.value), parameters=place.parameters)
    return index(lowering, x, [*[None] * (dim % len(node.shape)), place])


@rule("index_select")
def index_select(lowering: Lowering, x: Operand, dim: int, indices: Value) -> Node:
    """As x[:, i], but for an i below 0."""
    node, places = lowering.as_node(x), _settled(lowering, indices)
    dim %= len(node.shape)
    if places.owner == "public":
        return _public(lowering, node, [*[None] * dim, places.tensor])
    return _along(lowering, node, dim, places, 0)


@rule("index", "_unsafe_index")
def index(lowering: Lowering, x: Operand, indices: Indices) -> Node:
    """x[i, :, j]: public indices; or x[:, i] and x[arange(B), i] with the client's own or a secret i."""
    node = lowering.as_node(x)
    indices = [None if i is None else _settled(lowering, i) for i in indices]
    used = [(dim, i) for dim, i in enumerate(indices) if i is not None]
    secret = [i for _, i in used if i.owner != "public"]
    if not secret:
        return _public(lowering, node, [None if i is None else i.tensor for i in indices])
    if len(used) == 1:
        return _along(lowering, node, used[0][0], secret[0], -node.shape[used[0][0]])
    if [dim for dim, _ in used] == [0, 1] and secret == [used[1][1]] and _counts(used[0][1], node.shape[0]):
        return _own_rows(lowering, node, secret[0])
    what = (
        f"indexing a secret by a value of the {secret[0].owner} has a rule for x[i], x[:, i] and x[arange(len(x)), i]"
    )
    raise lowering.fail(what, OPEN if secret[0].owner == "server" else "multiply by a one-hot mask and sum instead")


@rule("embedding")
def embedding(lowering: Lowering, table: Operand, ids: Value, *options: object) -> Node:
    """A lookup in the server's table by the client's tokens: the one-hot matrix times the table."""
    node, ids = lowering.as_node(table), _settled(lowering, ids)
    if ids.owner == "public":
        return _public(lowering, node, [ids.tensor])
    rows = one_hot(lowering, ids, node.shape[0])
    return _rows(lowering, node, rows) if ids.owner == "shared" else product(lowering, lowering.as_node(rows), node)


@rule("gather")
def gather(lowering: Lowering, x: Operand, dim: int, indices: Value, **named: object) -> Node:
    """Public indices rearrange; others are one-hot rows, which are multiplied by."""
    b, node, indices = lowering.builder, lowering.as_node(x), _settled(lowering, indices)
    dim %= len(node.shape)
    if indices.owner == "public":
        return _gathered(lowering, node, dim, indices.tensor)
    rows = one_hot(lowering, indices, node.shape[dim])  # [..., places, ..., size]
    shape = lowering.as_node(indices).shape
    node = b.slice(node, 0, 0, node.shape[0])
    for other, size in enumerate(shape):
        if other != dim:
            node = b.slice(node, other, 0, size)
    moved = [d for d in range(len(shape)) if d != dim]
    spread = b.permute(node, [*moved, dim])  # [..., size]
    spread = b.reshape(spread, (*[1 if d == dim else shape[d] for d in range(len(shape))], node.shape[dim]))
    return b.sum(b.mul(spread, lowering.as_node(rows)), [-1], keepdim=False)


@rule("scatter")
def scatter(
    lowering: Lowering, x: Operand, dim: int, indices: Value, source: Operand, *, reduce: str | None = None
) -> Node:
    """x with what the source holds at places of a dimension. Of others than public ones, one after the other."""
    if reduce is not None:
        raise lowering.fail(f"a scatter that reduces ({reduce}) has no rule; add a one-hot product instead")
    b, node, new = lowering.builder, lowering.as_node(x), lowering.as_node(source)
    indices = _settled(lowering, indices)
    shape, size = lowering.as_node(indices).shape, node.shape[dim]
    dim %= len(shape)
    for other, count in enumerate(shape if new.shape else ()):
        new = b.slice(new, other, 0, count)
    new = b.expand(new, shape)
    if indices.owner == "public":
        count = math.prod(node.shape)
        places = torch.arange(count).reshape(node.shape)
        now = places.scatter(dim, indices.tensor, count + torch.arange(math.prod(shape)).reshape(shape))
        both = b.concat([b.reshape(part, (math.prod(part.shape),)) for part in (node, new)], 0)
        return b.reshape(b.index(both, 0, now.flatten().tolist()), node.shape)
    if (*shape[:dim], size, *shape[dim + 1 :]) != node.shape:
        raise lowering.fail("a scatter by secret indices has a rule for those of every row; slice the tensor before it")
    bits = b.transpose(lowering.as_node(one_hot(lowering, indices, size)), dim, -1)  # [..., size, ..., places]
    for place in range(shape[dim]):
        node = b.where(b.select(bits, -1, place), b.slice(new, dim, place, place + 1), node)
    return node


@rule("unfold")
def unfold(lowering: Lowering, x: Operand, dim: int, size: int, step: int) -> Node:
    """Windows of a dimension, whose places come last."""
    node = lowering.as_node(x)
    dim %= len(node.shape)
    windows = _flat_index(lowering, node, dim, dim, torch.arange(node.shape[dim]).unfold(0, size, step))
    return lowering.builder.permute(windows, [*(d for d in range(len(windows.shape)) if d != dim + 1), dim + 1])


@rule("one_hot")
def one_hot(lowering: Lowering, indices: Operand, size: int, least: int = 0) -> Value | Node:
    """Rows of zeros with a one at the index, which is `least` or more: -size, where negative ones count from the end.
    Of a secret index: the steps where `index < place` turns true, from the first that it can be to the last."""
    if isinstance(indices, Value) and indices.owner != "shared":
        return _as_bits(lowering.apply("aten.one_hot.default", lowering.from_start(indices, size, least), size))
    b, node = lowering.builder, lowering.as_node(indices)
    low, high = ends(node)
    if not least <= low <= high < size:
        raise lowering.fail(
            f"a secret index may be {low:.0f} to {high:.0f}, of {size} rows; clamp it to {least} to {size - 1} first"
        )
    first, last = round(low), round(high)
    if first == last:
        return Value("public", F.one_hot(torch.full(node.shape, first % size), size).double())
    turned, dim = steps(lowering, b.sub(node, b.constant(float(first))), last - first), len(node.shape)
    bits = b.concat([turned, b.sub(b.constant(1.0), b.sum(turned, [-1], keepdim=True))], dim)
    if (first, last) == (0, size - 1):
        return bits
    bits, none = b.concat([bits, b.constant(torch.zeros(*node.shape, 1))], dim), last - first + 1
    read = [
        b.index(bits, dim, [place - first if first <= place <= last else none for place in range(start, start + size)])
        for start in (0, -size)
        if start <= last and first < start + size
    ]
    return b.add(*read) if len(read) > 1 else read[0]


def _settled(lowering: Lowering, indices: Value) -> Value:
    """A secret that can only be one number is none."""
    if indices.owner != "shared":
        return indices
    low, high = ends(lowering.as_node(indices))
    return Value("public", torch.full(lowering.as_node(indices).shape, round(low))) if low == high else indices


def _as_bits(value: Value) -> Value:
    value.binary = True
    return value


def _public(lowering: Lowering, node: Node, indices: Sequence[Tensor | None]) -> Node:
    """x[indices] with what everybody knows: a vector of places in one dimension, or in those dimensions together."""
    used = [dim for dim, i in enumerate(indices) if i is not None]
    only = indices[used[0]] if len(used) == 1 else None
    if only is not None and only.dim() == 1:
        places = only.nonzero().flatten() if only.dtype == torch.bool else only
        return lowering.builder.index(node, used[0], places.tolist())
    first, last = used[0], used[-1]
    within = node.shape[first : last + 1]
    places = torch.arange(math.prod(within)).reshape(within)
    picked = places[tuple(slice(None) if i is None else i for i in indices[first : last + 1])]
    if last - first + 1 > len(used) and first > 0:  # the new dimensions come first of all
        places = torch.arange(math.prod(node.shape)).reshape(node.shape)
        picked, first, last = places[tuple(slice(None) if i is None else i for i in indices)], 0, len(node.shape) - 1
    return _flat_index(lowering, node, first, last, picked)


def _flat_index(lowering: Lowering, node: Node, first: int, last: int, places: Tensor) -> Node:
    """The dimensions from `first` to `last` read as one, and taken at these places of it."""
    b, before, after = lowering.builder, node.shape[:first], node.shape[last + 1 :]
    flat = b.reshape(node, (*before, math.prod(node.shape[first : last + 1]), *after))
    taken = b.index(flat, first, places.flatten().tolist())
    return b.reshape(taken, (*before, *places.shape, *after))


def _gathered(lowering: Lowering, node: Node, dim: int, indices: Tensor) -> Node:
    """By public indices. In leading dimensions where they are all alike, the whole slice is taken at once."""
    alike = 0
    while alike < dim and indices.shape[alike] == node.shape[alike]:
        one = indices.select(alike, 0).unsqueeze(alike)
        if not torch.equal(one.expand_as(indices), indices):
            break
        alike += 1
    inner, wanted = node.shape[alike:], indices
    for _ in range(alike):
        wanted = wanted[0]
    places = torch.arange(math.prod(inner)).reshape(inner)
    for other, size in enumerate(wanted.shape):
        if other != dim - alike:
            places = places.narrow(other, 0, size)
    return _flat_index(lowering, node, alike, len(node.shape) - 1, places.gather(dim - alike, wanted))


def _along(lowering: Lowering, node: Node, dim: int, indices: Value, least: int) -> Node:
    """x[:, i] with an i that is not public."""
    b, rest = lowering.builder, [d for d in range(len(node.shape)) if d != dim]
    rows = _rows(lowering, b.permute(node, [dim, *rest]), one_hot(lowering, indices, node.shape[dim], least))
    count = len(rows.shape) - len(rest)  # dimensions of the index, which come where the one was
    return b.permute(rows, [*range(count, count + dim), *range(count), *range(count + dim, len(rows.shape))])


def _rows(lowering: Lowering, node: Node, one_hot: Operand) -> Node:
    """x[i] with an i that is not public: its one-hot rows times x."""
    b, rows = lowering.builder, lowering.as_node(one_hot)
    flat = b.reshape(node, (node.shape[0], math.prod(node.shape[1:])))
    picked = b.matmul(b.reshape(rows, (math.prod(rows.shape[:-1]), node.shape[0])), flat)
    return b.reshape(picked, (*rows.shape[:-1], *node.shape[1:]))


def _counts(rows: Value, batch: int) -> bool:
    return rows.owner == "public" and rows.tensor.tolist() == list(range(batch))


def _own_rows(lowering: Lowering, node: Node, columns: Value) -> Node:
    """x[arange(B), j], j [B]: x times one-hot rows, summed."""
    b, count = lowering.builder, node.shape[1]
    rows = one_hot(lowering, columns, count, -count)
    shape = [lowering.as_node(columns).shape[0], count, *[1] * (len(node.shape) - 2)]
    if isinstance(rows, Value) and rows.owner == "client":
        rows = _as_bits(lowering.apply("aten.reshape.default", rows, shape))
    return b.sum(b.mul(node, b.reshape(lowering.as_node(rows), tuple(shape))), [1], keepdim=False)


def _public_indices(lowering: Lowering, indices: Value) -> list[int]:
    if owner_of(indices) != "public" or indices.tensor.dim() != 1:
        advice = OPEN if owner_of(indices) == "server" else ""
        raise lowering.fail("a write at indices has a rule for one public vector of them, without accumulate", advice)
    value = indices.tensor
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
