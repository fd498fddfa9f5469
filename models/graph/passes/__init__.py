"""Rewrites of the secret graph: each a pure function from outputs to outputs, meaning the same and costing less."""

from __future__ import annotations

from ..graph import Node
from .linears import even_rows, fold_affines, fuse_linears, split_products
from .masks import mask_values
from .rewrite import merge_equal
from .rows import needed_rows
from .scalars import fold_scalars

PASSES = (
    merge_equal,
    split_products,
    needed_rows,
    merge_equal,
    fold_scalars,
    mask_values,
    fold_affines,
    merge_equal,
    fuse_linears,
    merge_equal,
    even_rows,
)


def optimise(outputs: list[Node]) -> list[Node]:
    """Apply all passes in order."""
    for one in PASSES:
        outputs = one(outputs)
    return outputs


__all__ = ["PASSES", "optimise"]
