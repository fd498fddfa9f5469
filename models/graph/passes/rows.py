"""What nobody reads is not computed: a slice moves up to where its rows come from.

A classifier reads its first token alone, a causal model its last. So the last layer's feed-forward, its residual and
its queries are needed for one token, and keys and values for all.

Every node is asked for all of it, or for one slice that all of its readers agree on. What computes row by row passes
that on to its arguments; what does not is computed whole, and sliced.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ..graph import Builder, Node, derived, order

SOURCES = ("client", "weight", "constant")
ELEMENTWISE = ("add", "sub", "mul", "mul_private", "mul_public", "neg", "ldexp", "polynomial", "less")


@dataclass(frozen=True)
class Cut:
    """The elements start, start + step, ... below stop of a dimension, counted from the last one: -1, -2 ..."""

    dim: int
    start: int
    stop: int
    step: int

    def of(self, builder: Builder, x: Node) -> Node:
        return builder.slice(x, self.dim, self.start, self.stop, self.step)

    def at(self, dim: int) -> Cut:
        return Cut(dim, self.start, self.stop, self.step)


def needed_rows(outputs: list[Node]) -> list[Node]:
    """The graph, computed only as far as it is read."""
    nodes = order(outputs)
    asked: dict[int, set[Cut | None]] = {id(node): set() for node in nodes}
    for node in outputs:
        asked[id(node)].add(None)
    for node in reversed(nodes):
        passed = _passed(node, _only(asked[id(node)])) or [None] * len(node.args)
        for arg, cut in zip(node.args, passed, strict=True):
            asked[id(arg)].add(cut)
    builder, rebuilt = Builder(), {}
    for node in nodes:
        builder.path, builder.searching = node.path, node.search
        rebuilt[id(node)] = _made(builder, node, asked, rebuilt)
    return [rebuilt[id(node)] for node in outputs]


def _only(cuts: set[Cut | None]) -> Cut | None:
    return next(iter(cuts)) if len(cuts) == 1 else None


def _made(builder: Builder, node: Node, asked: dict[int, set[Cut | None]], rebuilt: dict[int, Node]) -> Node:
    """The node, or what is asked of it."""
    if node.op in SOURCES:
        return node
    cut = _only(asked[id(node)])
    passed = _passed(node, cut)
    args = []
    for arg, wanted in zip(node.args, passed or [None] * len(node.args), strict=True):
        have = None if arg.op in SOURCES else _only(asked[id(arg)])
        args.append(_sliced(builder, rebuilt[id(arg)], None if have == wanted else wanted))
    if node.op == "slice":
        return args[0] if cut is None else cut.of(builder, args[0])
    if cut is None or passed is None:
        whole = node
        if any(a is not b for a, b in zip(args, node.args, strict=True)):
            whole = replace(node, args=args, value=None)
        return whole if cut is None else cut.of(builder, whole)
    shape = list(node.shape)
    shape[cut.dim] = len(range(cut.start, cut.stop, cut.step))
    attributes = dict(node.attributes)
    if "sizes" in attributes:
        attributes["sizes"] = shape
    return _like(node, args, tuple(shape), attributes)


def _like(node: Node, args: list[Node], shape: tuple[int, ...], attributes: dict[str, Any]) -> Node:
    return replace(node, args=args, attributes=attributes, shape=shape, value=None)


def _sliced(builder: Builder, node: Node, cut: Cut | None) -> Node:
    if cut is None:
        return node
    if node.op != "weight":
        return cut.of(builder, node)
    assert node.value is not None
    dim = cut.dim + node.value.dim()
    value = node.value.index_select(dim, node.value.new_tensor(range(cut.start, cut.stop, cut.step)).long())
    name = f"{node.name}[{cut.start}:{cut.stop}:{cut.step}]"
    return derived(value, name, node)


def _passed(node: Node, cut: Cut | None) -> list[Cut | None] | None:
    """What a node asks of its arguments when it is asked for a slice of itself. None: it has to be computed whole."""
    if node.op == "slice":  # asks for its own, whatever is asked of it
        (arg,), attributes = node.args, node.attributes
        return [Cut(attributes["dim"] - len(arg.shape), attributes["start"], attributes["stop"], attributes["step"])]
    if cut is None or node.op in SOURCES:
        return None
    if node.op in (*ELEMENTWISE, "expand"):
        passed = [_broadcast(arg, node, cut) for arg in node.args]
        factor = node.op in ("mul_private", "mul_public") and node.args[1].op == "client" and passed[1] is not None
        return None if factor else passed
    if node.op in ("lookup", "exp", "fourier"):
        return [cut, *(None for _ in node.args[1:])]
    if node.op == "sides" and cut.dim < -1:
        return [cut]
    if node.op == "reached" and cut.dim < -1:
        passed = [cut, *(_broadcast(arg, node, cut) for arg in node.args[1:])]
        of_client = any(arg.op == "client" and its for arg, its in zip(node.args, passed, strict=True))
        return None if of_client else passed
    if node.op == "linear" and cut.dim == -1 and len(node.args[1].shape) == 2:
        return [None, cut]
    rows = cut.dim == -2 and node.op in ("linear", "matmul")  # else a weight of several matrices is cut, too
    if rows or (node.op == "linear" and cut.dim < -2 and len(node.args[1].shape) == 2):
        return [cut, None]
    if node.op == "permute":
        rank = len(node.shape)
        return [cut.at(node.attributes["dims"][cut.dim + rank] - rank)]
    if node.op == "reshape":
        moved = _reshaped(node.args[0], node, cut)
        return None if moved is None else [moved]
    if node.op == "sum" and node.attributes["keepdim"] and cut.dim + len(node.shape) not in node.attributes["dims"]:
        return [cut]
    return None


def _broadcast(arg: Node, node: Node, cut: Cut) -> Cut | None:
    """Nothing is left out where the argument is the same for all of the dimension."""
    return cut if len(arg.shape) >= -cut.dim and arg.shape[cut.dim] == node.shape[cut.dim] else None


def _reshaped(arg: Node, node: Node, cut: Cut) -> Cut | None:
    """The same dimension of the argument, if the reshape leaves it as it is; or if it divides the last one into rows of
    which the same elements are read."""
    before, size = math.prod(node.shape[: cut.dim + len(node.shape)]), node.shape[-1]
    if (
        cut.dim == -1
        and arg.shape
        and arg.shape[-1] % size == 0
        and (cut.start, cut.stop, size % cut.step) == (0, size, 0)
    ):
        return Cut(-1, 0, arg.shape[-1], cut.step)
    for dim, size in enumerate(arg.shape):
        if size == node.shape[cut.dim] and math.prod(arg.shape[:dim]) == before:
            return cut.at(dim - len(arg.shape))
    return None
