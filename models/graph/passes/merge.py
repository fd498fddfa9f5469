"""Equal computations are done once; so comparisons and products that read the same value share its opening."""

from __future__ import annotations

from typing import Any

from ..graph import Node
from .rewrite import rewrite


def merge_equal(outputs: list[Node]) -> list[Node]:
    seen: dict[tuple[Any, ...], Node] = {}
    return rewrite(outputs, lambda node: seen.setdefault(node.key(), node))
