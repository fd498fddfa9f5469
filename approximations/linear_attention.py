"""Attention whose cost grows with the length of a text, not with its square: on secrets no query meets a key.

The weight of key k for query q is a square, (q k / sqrt(d) + c)^2 as in MPCFormer's 2Quad, of a few of a head's d
features (`rank` of them). Such a square is a product of features of each, phi(q) phi(k)^T, and so the sums over keys
come first (A. Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236):

    phi(Q) (phi(K)^T [V, 1])        [queries, F] ([F, keys] [keys, values + 1])        F = (rank + 1)(rank + 2) / 2

The last column is the denominator, and a mask of keys is a factor of [V, 1]. Where queries see different keys (those
before them, or near them), the squares themselves are computed: still without a maximum and an exponential. In the
clear they always are: both orders give the same numbers, and with few keys squares take less.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import by_group, none_kept
from .errors import PlanError
from .plan import Plan

RANK = 8


def scores_of_few(query: Tensor, key: Tensor, rank: float) -> Tensor:
    """Scores [..., queries, keys] of the features that are read, without their scale."""
    return by_group(_read(query, rank), _read(key, rank).transpose(-2, -1))


def squares(query: Tensor, key: Tensor, scale: float, shift: float, rank: float, epsilon: float) -> Tensor:
    """Numerators [..., queries, keys], in units of scale^2."""
    scores = scores_of_few(query, key, rank) + _level(scale, shift)
    return scores * scores + epsilon / scale**2 if epsilon else scores * scores


def features(
    query: Tensor, key: Tensor, scale: float, shift: float, rank: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """phi(Q) [..., queries, F] and phi(K) [..., keys, F], whose products are the squares."""
    q, k, c = _read(query, rank), _read(key, rank), _level(scale, shift)
    last = c * c + epsilon / scale**2
    ones = torch.ones_like(q[..., :1])
    return (
        torch.cat([*_pairs(q, 1.0), q, ones], -1),
        torch.cat([*_pairs(k, 2.0), k * (2.0 * c), torch.full_like(k[..., :1], last)], -1),
    )


def sums_of_values(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor | None,
    scale: float,
    partial: bool,
    dropout: float,
    **constants: float,
) -> tuple[Tensor, Tensor]:
    """(numerators of the result [..., queries, values], denominators [..., queries, 1]).

    keep: 1 where a query sees a key, as broadcast to [..., queries, keys]. partial: whether queries may see different
    keys.

    Errors: PlanError for a mask of another kind than was said, where its values can be read.
    """
    if not partial and keep is not None and not torch.compiler.is_exporting():
        _check_of_keys(keep)
    if not partial and torch.compiler.is_exporting() and key.shape[-2] > _count(key, constants["rank"]):
        ones = torch.ones_like(value[..., :1])
        weighted = torch.cat([value, ones], -1)
        if keep is not None:
            weighted = weighted * keep.amax(-2, keepdim=True).transpose(-2, -1)
        queries, keys = features(query, key, scale, **constants)
        sums = by_group(queries, keys.transpose(-2, -1) @ weighted)
        mixed, total = sums[..., :-1], sums[..., -1:]
    else:
        weights = squares(query, key, scale, **constants)
        weights = weights if keep is None else weights * keep
        total = weights.sum(-1, keepdim=True)
        mixed = by_group(F.dropout(weights, dropout) if dropout else weights, value)
    return mixed, total if keep is None else total + none_kept(keep)


def read_features(count: int, rank: float) -> range:
    """Which of a head's features are read: one of so many, so that a weight's other columns can be left out."""
    return range(0, count, max(1, count // int(rank)))


def rank_of(plan: Plan) -> float:
    """The features of a head that a plan's linear attention reads."""
    return plan.softmax.options.get("rank", RANK)


def _read(x: Tensor, rank: float) -> Tensor:
    return x[..., :: read_features(x.shape[-1], rank).step]


def _count(x: Tensor, rank: float) -> int:
    read = len(read_features(x.shape[-1], rank))
    return (read + 1) * (read + 2) // 2


def _level(scale: float, shift: float) -> float:
    """c / scale, as the nearest power of two: then features need no other factors."""
    return 2.0 ** round(math.log2(shift / scale))


def _pairs(x: Tensor, twice: float) -> list[Tensor]:
    """Products of every two features; those of different ones times `twice`."""
    products = x.unsqueeze(-1) @ x.unsqueeze(-2)
    pairs = []
    for i in range(x.shape[-1]):
        pairs += [products[..., i, i : i + 1], products[..., i, i + 1 :] * twice]
    return pairs[:-1]


def _check_of_keys(keep: Tensor) -> None:
    unlike = keep != keep.amax(-2, keepdim=True)
    if bool((unlike & (keep.amax(-1, keepdim=True) > 0)).any()):
        raise PlanError(
            "softmax linear: the tokens of this layer see different keys, as in a window; choose another softmax for it"
        )
