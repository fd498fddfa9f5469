"""Sentence embeddings of many texts, and how alike two models find pairs of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batches import Tokens, in_order


def embeddings_of(model: nn.Module, tokens: Tokens, size: int = 64) -> Tensor:
    """A sentence encoder's embeddings [texts, H], as it pools them, in the order of the texts."""
    found: list[Tensor] = [torch.empty(0)] * len(tokens)
    with torch.no_grad():
        for indices in in_order(tokens.lengths, size):
            rows = model(**tokens.batch(indices)).sentence_embedding
            for i, row in zip(indices, rows, strict=True):
                found[i] = row
    return torch.stack(found)


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """[pairs] of embeddings [pairs, H]."""
    return F.cosine_similarity(left, right, dim=-1)


def spearman(left: Tensor, right: Tensor) -> float:
    """Spearman's rank correlation of two lists of numbers without ties."""
    ranks = torch.stack([values.argsort().argsort().double() for values in (left, right)])
    return float(torch.corrcoef(ranks)[0, 1])
