"""Attention whose cost grows with the length of a text, not with its square: no query meets a key.

The weight of key k for query q is a product of features of each, phi(q) phi(k)^T, so the sums over keys come first
(A. Katharopoulos et al., "Transformers are RNNs", arXiv:2006.16236):

    phi(Q) (phi(K)^T [V, 1])        [queries, F] ([F, keys] [keys, features + 1])

and the last column is the denominator. A mask of keys is a factor of [V, 1]. Where a query may see only the tokens
before it, the order cannot be changed without a sum for each token; there all weights are computed, which is still
cheaper than a softmax: they are a product and no function of one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import by_group, none_kept
from .errors import PlanError


def sums_of_values(
    queries: Tensor, keys: Tensor, values: Tensor, keep: Tensor | None, partial: bool, dropout: float
) -> tuple[Tensor, Tensor]:
    """(numerators of the result [..., queries, features], denominators [..., queries, 1]), of phi(Q), phi(K), V and a
    mask that broadcasts to [..., queries, keys].

    partial: whether queries may see different keys.

    Errors: PlanError for a mask of another kind than was said, where its values can be read.
    """
    if partial:
        weights = by_group(queries, keys.transpose(-2, -1))
        weights = weights if keep is None else weights * keep
        total = weights.sum(-1, keepdim=True)
        mixed = by_group(F.dropout(weights, dropout) if dropout else weights, values)
        return mixed, total if keep is None else total + none_kept(keep)
    ones = torch.ones_like(values[..., :1])
    weighted = torch.cat([values, ones], -1)
    if keep is not None:
        weighted = weighted * _of_keys(keep)
    sums = by_group(queries, keys.transpose(-2, -1) @ weighted)
    total = sums[..., -1:]
    return sums[..., :-1], total if keep is None else total + none_kept(keep)


def _of_keys(keep: Tensor) -> Tensor:
    """The keys that any query sees, [..., keys, 1]."""
    seen = keep.amax(-2, keepdim=True)
    if keep.shape[-2] > 1 and not torch.compiler.is_exporting():
        sees_none = keep.amax(-1, keepdim=True) == 0
        if bool(((keep != seen) & ~sees_none).any()):
            raise PlanError(
                "softmax linear: the tokens of this layer see different keys, as in a window; choose another softmax "
                "for it"
            )
    return seen.transpose(-2, -1)
