"""Rewrites of the secret graph: each a pure function from outputs to outputs, meaning the same and costing less."""

from __future__ import annotations

from ..graph import Node
from .affine import fold_affines
from .fuse import fuse_linears
from .masks import mask_values
from .merge import merge_equal
from .scalars import fold_scalars

PASSES = (merge_equal, fold_scalars, mask_values, fold_affines, merge_equal, fuse_linears, merge_equal)
"""In order. `fold_affines` is left out where weights are quantised below 16 bits: it would undo the quantisation."""


def optimise(outputs: list[Node], bits: int = 16) -> list[Node]:
    """Apply all passes. `bits`: of the linear weights."""
    for one in PASSES:
        if one is fold_affines and bits < 16:
            continue
        outputs = one(outputs)
    return outputs


__all__ = ["PASSES", "optimise"]
