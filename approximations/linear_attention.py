"""Attention whose cost grows with the length of a text, not with its square: on secrets no query meets a key.

The weight of key k for query q is a square, (x / c + 1)^2 of their score x = q k / sqrt(d) as in MPCFormer's 2Quad, but
of a few of a head's d features (`rank` of them). Such a square is a product of features of each, phi(q) phi(k)^T, and
so the sums over keys come first (A. Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236):

    phi(Q) (phi(K)^T [V, 1])        [queries, F] ([F, keys] [keys, values + 1])        F = (rank + 1)(rank + 2) / 2

The last column is the denominator, and a mask of keys is a factor of [V, 1]. Where queries see different keys (those
before them, or near them), the squares themselves are computed: still without a maximum and an exponential. In the
clear they always are, since with few keys they take less; the numbers are the same.

A traced model holds no masks to look at. So the order is changed only for modules that an earlier run has shown to give
all queries the same keys (`Overrides.same_keys`); `compile` makes such a run, with nothing masked.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import by_group, none_kept
from .errors import PlanError

RANK = 8


def check_options(shift: float, rank: float, epsilon: float) -> None:
    """Errors: PlanError for options that no attention has."""
    if not (isinstance(rank, int | float) and math.isfinite(rank) and rank >= 1):
        raise PlanError(f"softmax linear: rank {rank}: give a number of features, 1 or more")
    if not (isinstance(shift, int | float) and 2.0**-16 <= shift <= 2.0**16):
        raise PlanError(f"softmax linear: shift {shift}: give a positive number, such as 5")
    if not (isinstance(epsilon, int | float) and 0.0 <= epsilon <= 2.0**16):
        raise PlanError(f"softmax linear: epsilon {epsilon}: give a number of 0 or more")


def scores_of_few(query: Tensor, key: Tensor, rank: float) -> Tensor:
    """Scores [..., queries, keys] of the features that are read, without their scale."""
    return by_group(_read(query, rank), _read(key, rank).transpose(-2, -1))


def squares(query: Tensor, key: Tensor, scale: float, shift: float, rank: float, epsilon: float) -> Tensor:
    """Numerators [..., queries, keys]: 1 where the score is 0."""
    level = _level(scale, shift)
    scores = scores_of_few(query, key, rank) / level + 1.0
    return scores * scores + epsilon / (scale * level) ** 2 if epsilon else scores * scores


def features(
    query: Tensor, key: Tensor, scale: float, shift: float, rank: float, epsilon: float
) -> tuple[Tensor, Tensor]:
    """phi(Q) [..., queries, F] and phi(K) [..., keys, F], whose products are the squares."""
    q, k, level = _read(query, rank), _read(key, rank), _level(scale, shift)
    ones = torch.ones_like(q[..., :1])
    rest = torch.full_like(k[..., :1], 1.0 + epsilon / (scale * level) ** 2)
    return (
        torch.cat([*_pairs(q, 1.0, 1.0), q, ones], -1),
        torch.cat([*_pairs(k, 1.0 / level**2, 2.0 / level**2), k * (2.0 / level), rest], -1),
    )


def sums_of_values(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keep: Tensor | None,
    scale: float,
    same: bool,
    dropout: float,
    **constants: float,
) -> tuple[Tensor, Tensor]:
    """(numerators of the result [..., queries, values], denominators [..., queries, 1]).

    keep: 1 where a query sees a key, as broadcast to [..., queries, keys]. same: whether it is known that all queries
    see the same keys; then these may be summed first.
    """
    same = same and (keep is None or keep.dim() < 3 or keep.shape[-3] == 1)  # the same of all heads, too
    if same and torch.compiler.is_exporting() and _is_cheaper(query, key, constants["rank"]):
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


def sees_the_same(keep: Tensor | None) -> bool:
    """Whether all queries that see any key see the same ones, by the mask's own numbers."""
    if keep is None or keep.shape[-2] == 1:
        return True
    unlike = keep != keep.amax(-2, keepdim=True)
    return not bool((unlike & (keep.amax(-1, keepdim=True) > 0)).any())


def read_features(count: int, rank: float) -> range:
    """Which of a head's features are read: one of so many, so that a weight's other columns can be left out."""
    return range(0, count, max(1, int(count // rank)))


def _read(x: Tensor, rank: float) -> Tensor:
    return x[..., :: read_features(x.shape[-1], rank).step]


def _is_cheaper(query: Tensor, key: Tensor, rank: float) -> bool:
    """Whether there are fewer features of all queries and keys than squares."""
    read, queries, keys = len(read_features(query.shape[-1], rank)), query.shape[-2], key.shape[-2]
    return (read + 1) * (read + 2) // 2 * (queries + keys) < queries * keys


def _level(scale: float, shift: float) -> float:
    """c / scale, as the nearest power of two: then features need no other factors."""
    return 2.0 ** round(math.log2(shift / scale))


def _pairs(x: Tensor, once: float, twice: float) -> list[Tensor]:
    """Products of every two features: a square times `once`, a pair of different ones times `twice`."""
    products = x.unsqueeze(-1) @ x.unsqueeze(-2)
    pairs = []
    for i in range(x.shape[-1]):
        pairs += [products[..., i, i : i + 1] * once, products[..., i, i + 1 :] * twice]
    return pairs[:-1]
