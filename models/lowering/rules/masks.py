"""Masks of attention: where they hide scores, and the scores without them (models/lowering/masks.py)."""

from __future__ import annotations

import torch

from ...graph.graph import Node
from ..lowering import Lowering
from ..masks import finite, is_low, split
from ..values import Operand, Value
from . import rule
from .elementwise import mul


@rule("where")
def where(lowering: Lowering, condition: Operand, x: Operand, y: Operand) -> Node:
    """A number that only a mask would hold is noted as a mask, where the condition is known to somebody."""
    node = lowering.builder.where(*(lowering.as_node(finite(v)) for v in (condition, x, y)))
    for scores, other, keeps in ((x, y, "aten.clone.default"), (y, x, "aten.logical_not.default")):
        if is_low(other) and isinstance(condition, Value) and condition.owner != "shared":
            lowering.hiding[id(node)] = node, lowering.apply(keeps, condition), lowering.as_node(scores)
    return node


@rule("masked_fill")
def masked_fill(lowering: Lowering, x: Operand, mask: Operand, value: Operand) -> Node:
    return where(lowering, mask, value, x)


@rule("keeps")
def keeps(lowering: Lowering, x: Operand) -> Value:
    """1 where no mask hides a score."""
    node = lowering.as_node(x)
    masks, _ = split(lowering, node)
    if len({mask.owner for mask in masks} - {"public"}) > 1:
        raise lowering.fail(
            "a mask of the client and one of the server hide the same scores; register the server's as a buffer with "
            "persistent=False, which makes it public"
        )
    keys = (*(1 for _ in node.shape[1:]), node.shape[-1])
    keep = Value("public", torch.ones(keys))
    for number, mask in enumerate(masks):
        keep = lowering.apply("aten.logical_and.default", keep, mask) if number else mask
    shape = keep.tensor.shape
    if shape[-1:] != keys[-1:]:  # the same for all keys: queries that see none
        keep = lowering.apply("aten.expand.default", keep, [*shape[:-1], keys[-1]])
    return lowering.apply("aten.to.dtype", keep, torch.float32)


@rule("unmasked")
def unmasked(lowering: Lowering, x: Operand) -> Node:
    """The scores without their masks, 0 where these hide them."""
    masks, scores = split(lowering, lowering.as_node(x))
    for mask in masks:
        scores = mul(lowering, scores, mask)
    return scores
