"""Linears that read the same value become one with their weights side by side (Q, K, V).

Each weight first moves by a power of two to the finest one's unit, and its slice of the result back, which is free: so
quantised weights side by side need no more bits than each by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...program.encoding import quantised_scale
from ..graph import EVENS, Builder, Node, derived
from .rewrite import rewrite, users

MOST = 24  # fractional bits beyond which a weight counts as not quantised
LARGEST = 2.0**15  # whole number beyond which it does: every float32 is whole at some scale


def fuse_linears(outputs: list[Node]) -> list[Node]:
    readers = users(outputs)
    fused: dict[int, tuple[Node, int, int]] = {}  # linear -> (its group's weight, first column, power of two)
    for group in readers.values():
        linears = list({id(n): n for n in group if n.op == "linear" and len(n.args[1].shape) == 2}.values())
        if len({id(n.args[0]) for n in linears}) > 1:
            continue
        for owner in ("server", "public"):  # a public weight beside a secret one would be as secret
            _fuse([n for n in linears if n.args[1].owner == owner], fused)
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


def _fuse(linears: list[Node], fused: dict[int, tuple[Node, int, int]]) -> None:
    if len(linears) < 2:
        return
    weights = [n.args[1] for n in linears]
    values = [w.value.double() for w in weights if w.value is not None]
    scales = [_scale(value) for value in values]
    powers = [0 if scale == MOST else min(scales) - scale for scale in scales]
    value = torch.cat([v * 2.0**-power for v, power in zip(values, powers, strict=True)], dim=1)
    weight = derived(value, "+".join(w.name for w in weights), *weights)
    start = 0
    for linear, power in zip(linears, powers, strict=True):
        fused[id(linear)] = (weight, start, power)
        start += linear.shape[-1]


def _scale(value: Tensor) -> int:
    """Fractional bits of a quantised weight; MOST of another."""
    scale = quantised_scale(value, MOST)
    return scale if float(value.abs().max()) * 2.0**scale <= LARGEST else MOST


# A norm's affine before a linear goes into the linear: (n g + b) W = n (g W) + b W.
#
# The residual still reads n g + b, on the same one-sided opening of n, so the linear's own message disappears.


def fold_affines(outputs: list[Node]) -> list[Node]:
    builder = Builder()

    def change(node: Node) -> Node | None:
        if node.op != "linear" or len(node.args[1].shape) != 2:
            return None
        x, weight = node.args
        bias = None
        if x.op == "add" and x.args[1].op == "weight":
            x, bias = x.args
        if x.op not in ("mul_private", "mul_public") or not _is_row(x.args[1], weight.shape[0]):
            return None
        if x.args[1].op != "weight" or not _may_take_in(weight, x.args[1]) or not _may_take_in(weight, bias):
            return None
        if bias is not None and not _is_row(bias, weight.shape[0]):
            return None
        builder.path, builder.searching = node.path, node.search
        inner, gain = x.args
        if inner.shape[-1] != weight.shape[0]:  # one number for all of a row
            return None
        assert weight.value is not None
        assert gain.value is not None
        value = weight.value.to(torch.float64)
        row = gain.value.to(torch.float64).reshape(-1, 1)
        folded = derived(value * row, f"{gain.name}@{weight.name}", weight, gain)
        out = builder.matmul(inner, folded)
        if bias is None:
            return out
        assert bias.value is not None
        shift = bias.value.to(torch.float64).reshape(1, -1) @ value
        return builder.add(out, derived(shift.reshape(-1), f"{bias.name}@{weight.name}", weight, bias))

    return rewrite(outputs, change)


def _may_take_in(weight: Node, inner: Node | None) -> bool:
    """Whether the weight may be multiplied by the other and stay as open as it is."""
    return inner is None or weight.owner == "server" or inner.owner == "public"


def _is_row(node: Node, width: int) -> bool:
    return node.shape[-1:] == (width,) and torch.Size(node.shape).numel() == width


# A public weight behind a norm, with large and small rows, gets rows alike: x W = (x c) (W / c), by powers of two c at
# most 1.
#
# A weight is encoded with 16 bits for its largest entry. Language models have features that are always large, and rows
# of small weights for them: without bits of their own for these, their rounding drowns what the other features say. The
# product is local, so all this costs is bits of its result; with a private weight it would be opened.

FEWER, MOST_FEWER = 5, 8  # bits: less is not worth an instruction, and more no product has room for


def even_rows(outputs: list[Node]) -> list[Node]:
    builder = Builder()

    def change(node: Node) -> Node | None:
        if node.op != "linear" or node.args[1].owner != "public" or len(node.args[1].shape) != 2:
            return None
        x, weight = node.args
        assert weight.value is not None
        if weight.op != "weight" or not _is_normed(x) or _scale(weight.value) != MOST:  # quantised: has all of its bits
            return None
        tops = weight.value.double().abs().amax(1)
        fewer = torch.where(tops > 0, tops.max() / tops, 1.0).log2().floor().clamp(max=MOST_FEWER)
        if int(fewer.max()) < FEWER:
            return None
        builder.path, builder.searching = node.path, node.search
        evened = builder.node("mul_public", x, builder.constant(2.0**-fewer, EVENS), shape=x.shape)
        even = derived(weight.value.double() * 2.0 ** fewer[:, None], f"{weight.name}.even", weight)
        return builder.matmul(evened, even)

    return rewrite(outputs, change)


def _is_normed(node: Node) -> bool:
    """Whether a value is rows, each times one number."""
    while node.op in ("ldexp", "reshape", "slice", "permute"):
        node = node.args[0]
    return node.op == "mul" and any(arg.shape[-1:] == (1,) for arg in node.args)


# A product with rows of several owners becomes a product with each.
#
# Keys and values of a decoder are joined from the model's own (a prefix), those kept, and new ones. Joined, they are
# one secret that is opened anew for every token. Apart, the model's own are a weight and cost no opening, and those
# kept are open already:
#     q [a; b]^T = [q a^T, q b^T]    and    [p, r] [a; b] = p a + r b.

APART = ("weight", "state")


def split_products(outputs: list[Node]) -> list[Node]:
    builder = Builder()

    def change(node: Node) -> Node | None:
        if node.op != "matmul":
            return None
        builder.path, builder.searching = node.path, node.search
        x, y = node.args
        joined, dims = (y.args[0], y.attributes["dims"]) if y.op == "permute" else (y, list(range(len(y.shape))))
        parts = _parts(joined)
        if not any(part.op in APART for part in parts):
            return None
        dim = dims.index(joined.attributes["dim"])
        moved = [_permuted(builder, part, dims) for part in parts]
        if dim == len(dims) - 1:
            return builder.concat([builder.matmul(x, part) for part in moved], -1)
        if dim != len(dims) - 2:
            return None
        total, start = None, 0
        for part in moved:
            stop = start + part.shape[-2]
            product = builder.matmul(builder.slice(x, -1, start, stop), part)
            total, start = product if total is None else builder.add(total, product), stop
        return total

    return rewrite(outputs, change)


def _parts(node: Node) -> list[Node]:
    """What a value is joined from, in order."""
    if node.op != "concat":
        return []
    parts: list[Node] = []
    for arg in node.args:
        inner = arg.op == "concat" and arg.attributes["dim"] == node.attributes["dim"]
        parts += _parts(arg) if inner else [arg]
    return [part for part in parts if part.shape[node.attributes["dim"]]]


def _permuted(builder: Builder, node: Node, dims: list[int]) -> Node:
    if node.op != "weight" or dims == sorted(dims):
        return builder.permute(node, dims)
    assert node.value is not None
    return derived(node.value.permute(dims), f"{node.name}.permuted", node)
