"""Scores and masks of attention, kept apart: scores are secret, a mask is public or its owner's alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .primitives import operation

MASKED = -512.0
"""A score below this is one that a mask hides; an additive mask above it is a bias (relative positions, ALiBi)."""
INFINITE = -1e9
"""A number as low stands for minus infinity: in a mask, or where a search for the largest starts."""


@operation("keeps")
def _keeps(x: Tensor) -> Tensor:
    return (x > MASKED).to(x.dtype)


@operation("unmasked")
def _unmasked(x: Tensor) -> Tensor:
    return torch.where(x > MASKED, x, 0.0)


_keeps.register_fake(torch.empty_like)
_unmasked.register_fake(torch.empty_like)
_unmasked.register_autograd(
    lambda ctx, gradient: gradient * ctx.saved_tensors[0],
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(_keeps(inputs[0])),
)


def by_group(x: Tensor, y: Tensor) -> Tensor:
    """x @ y, where y may have fewer heads (dimension -3) than x: each serves a group of x's, and is not repeated."""
    if x.dim() < 4 or x.shape[-3] == y.shape[-3]:
        return x @ y
    rows = x.shape[-3] // y.shape[-3] * x.shape[-2]
    grouped = x.reshape(*x.shape[:-3], y.shape[-3], rows, -1)  # -1: a trace serves any number of keys
    return (grouped @ y).reshape(*x.shape[:-1], -1)


def scaled_scores(query: Tensor, key: Tensor, scale: float | None, bias: Tensor | None) -> tuple[Tensor, float]:
    """(scores [..., queries, keys], the factor still to come); their product is (query key^T) scale + bias.

    scale defaults to 1 / sqrt(features). Without a bias it is left to the softmax, where it may cost nothing.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = by_group(query, key.transpose(-2, -1))
    return (scores, scale) if bias is None else (scores * scale + bias, 1.0)


def split_mask(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> tuple[Tensor | None, Tensor | None]:
    """(keep, bias) of an attention mask: 1 where a key may be seen and 0 elsewhere, and what to add to scores.

    A boolean mask has no bias. Both depend on the mask alone.
    """
    keep = bias = None
    if mask is not None and mask.dtype == torch.bool:
        keep = mask.to(query.dtype)
    elif mask is not None:
        keep, bias = keep_and_scores(mask)
    if causal:
        length, keys = query.shape[-2], key.shape[-2]
        seen = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril().to(query.dtype)
        keep = seen if keep is None else keep * seen
    return keep, bias


def keep_and_scores(masked: Tensor) -> tuple[Tensor, Tensor]:
    """The same of scores that a mask hides some of. Lowering finds the mask in them.

    See models/lowering/rules/elementwise.py.
    """
    return _keeps(masked.detach()), _unmasked(masked)


def all_or_kept(keep: Tensor) -> Tensor:
    """The mask, but rows that keep no key keep all: torch's softmax of equal scores weighs all alike, where its
    attention weighs none."""
    return (keep >= keep.amax(-1, keepdim=True)).to(keep.dtype)


def none_kept(keep: Tensor) -> Tensor:
    """1 in rows [..., 1] that keep no key, as a padded query behind a window has: 0 / 0, unless something is added."""
    return 1.0 - keep.amax(-1, keepdim=True)
