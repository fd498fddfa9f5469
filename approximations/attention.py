"""Scores and masks of attention, kept apart: scores are secret, a mask is public or its owner's alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MASKED = -1e4
"""An additive mask below this hides a key; above it, it is a bias (relative positions, ALiBi)."""


def scaled_scores(query: Tensor, key: Tensor, scale: float | None, bias: Tensor | None) -> tuple[Tensor, float]:
    """(scores [..., queries, keys], the factor still to come); their product is (query key^T) scale + bias.

    scale defaults to 1 / sqrt(features). Without a bias it is left to the softmax, where it may cost nothing.
    """
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = query @ key.transpose(-2, -1)
    return (scores, scale) if bias is None else (scores * scale + bias, 1.0)


def split_mask(mask: Tensor | None, query: Tensor, key: Tensor, causal: bool) -> tuple[Tensor | None, Tensor | None]:
    """(keep, bias) of an attention mask: 1 where a key may be seen and 0 elsewhere, and what to add to scores.

    A boolean mask has no bias. Both depend on the mask alone.
    """
    keep = bias = None
    if mask is not None and mask.dtype == torch.bool:
        keep = mask.to(query.dtype)
    elif mask is not None:
        seen = mask > MASKED
        keep, bias = seen.to(query.dtype), torch.where(seen, mask, 0.0)
    if causal:
        length, keys = query.shape[-2], key.shape[-2]
        seen = torch.ones(length, keys, dtype=torch.bool, device=query.device).tril().to(query.dtype)
        keep = seen if keep is None else keep * seen
    return keep, bias


def keep_and_scores(masked: Tensor) -> tuple[Tensor, Tensor]:
    """The same of scores that an additive mask was added to: lowering recognises ``scores + mask > -1e4``."""
    seen = masked > MASKED
    return seen.to(masked.dtype), torch.where(seen, masked, 0.0)
