"""The walk that all passes share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..graph import Node, order


def rewrite(outputs: list[Node], change: Callable[[Node], Node | None]) -> list[Node]:
    """Rebuild the graph bottom-up; `change` sees each node with its new arguments and may return another instead."""
    new: dict[int, Node] = {}
    for node in order(outputs):
        args = [new[id(arg)] for arg in node.args]
        copy = node
        if any(a is not b for a, b in zip(args, node.args, strict=True)):
            copy = replace(node, args=args)
        new[id(node)] = change(copy) or copy
    return [new[id(out)] for out in outputs]


def copy(outputs: list[Node]) -> list[Node]:
    """The same graph in new nodes, for a pass that edits in place."""
    new: dict[int, Node] = {}
    for node in order(outputs):
        args = [new[id(arg)] for arg in node.args]
        new[id(node)] = replace(node, args=args)
    return [new[id(out)] for out in outputs]


def users(outputs: list[Node]) -> dict[int, list[Node]]:
    """Readers of every node."""
    readers: dict[int, list[Node]] = {}
    for node in order(outputs):
        for arg in node.args:
            readers.setdefault(id(arg), []).append(node)
    return readers


# Equal computations are done once; so comparisons and products that read the same value share its opening.


def merge_equal(outputs: list[Node]) -> list[Node]:
    seen: dict[tuple[Any, ...], Node] = {}
    return rewrite(outputs, lambda node: seen.setdefault(node.key(), node))
