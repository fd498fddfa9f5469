"""Before a student is narrower than its teacher: the teacher's heads and features in the order in which they are kept.

A model's answers stay as they are if its heads change places, or the features between the two layers of its
feed-forward do. So heads whose attention is alike become neighbours, which a student with fewer heads joins; and the
features that weigh most in the feed-forward's result come first, which a student with fewer features keeps (P. Michel
et al., arXiv:1905.10650, and E. Kurtic et al., ZipLM, arXiv:2302.04089, drop heads and features in this way; joined
heads lose no features). What is lost is then made up for by least squares (models/distillation/refit.py), and learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..distillation_settings import DistillError
from ..loading.layers import layer_count, stack_of, widths
from .layerwise import (
    Batch,
    Call,
    first_calls,
    groups_of,
    inputs_of,
    linears_of,
    next_calls,
    queries_and_keys,
    results_of,
)

_SEEN = 64  # texts whose attention is compared


def arrange(
    model: nn.Module,
    batches: Sequence[Batch],
    heads: int | None,
    intermediate: int | None,
) -> None:
    """Put a model's heads and features in the order in which a narrower one keeps them, in place.

    batches: of the model's inputs. heads, intermediate: of the narrower one; None: as many.

    Errors: DistillError for a model whose layers have other linear layers.
    """
    own_heads, own_intermediate = widths(model)
    if heads in (None, own_heads) and intermediate in (None, own_intermediate):
        return
    count = layer_count(model)
    path, masks = stack_of(model, count), [batch["attention_mask"].float() for batch in batches]
    with torch.no_grad():
        calls = first_calls(model, path, batches)
        for number in range(count):
            layer = model.get_submodule(f"{path}.{number}")
            if heads and own_heads and heads < own_heads:
                _arrange_heads(layer, calls, masks, own_heads, own_heads // heads)
            if intermediate and own_intermediate and intermediate < own_intermediate:
                _arrange_features(layer, calls, masks, own_intermediate)
            calls = next_calls(layer, calls)


def _arrange_features(layer: nn.Module, calls: Sequence[Call], masks: Sequence[Tensor], features: int) -> None:
    """By what each adds to the layer's result: its mean square times that of the weights that read it."""
    linears = linears_of(layer)
    writes = [name for name, child in linears if child.out_features == features != child.in_features]
    reads = [name for name, child in linears if child.in_features == features != child.out_features]
    if not writes or len(reads) != 1:
        kind = type(layer).__name__
        raise DistillError(f"{kind}: its feed-forward is not of two linear layers; leave intermediate out")
    weight = layer.get_submodule(reads[0]).weight
    weighs = inputs_of(layer, calls, reads[0], masks).square().mean(0) * weight.square().sum(0)  # type: ignore[operator]
    _reorder(layer, writes, reads[0], weighs.argsort(descending=True))


def _arrange_heads(layer: nn.Module, calls: Sequence[Call], masks: Sequence[Tensor], heads: int, joined: int) -> None:
    """Those whose attention is most alike beside each other."""
    groups = groups_of(layer, calls[0])
    ends = [queries_and_keys(names) for names in groups]
    place, pair = next(((i, pair) for i, pair in enumerate(ends) if pair is not None), (0, None))
    if pair is None or [len(names) for names in groups[place : place + 2]] != [3, 1]:
        raise DistillError(f"{type(layer).__name__}: its queries, keys and values are unknown; leave heads out")
    query, key = pair
    some = range(max(1, min(len(calls), -(-_SEEN // len(masks[0])))))
    seen = results_of(layer, [calls[i] for i in some])
    attention = [
        _attention(q.unflatten(-1, (heads, -1)), k.unflatten(-1, (heads, -1)), masks[i])
        for i, q, k in zip(some, seen[query], seen[key], strict=True)
    ]
    order = _neighbours(torch.corrcoef(torch.cat(attention, 1)), joined)
    features = torch.arange(seen[query][0].shape[-1]).unflatten(0, (heads, -1))[order].flatten()
    _reorder(layer, groups[place], groups[place + 1][0], features)


def _reorder(layer: nn.Module, writes: Sequence[str], reads: str, order: Tensor) -> None:
    """Put the features that some linear layers write and one reads in another order."""
    for name in writes:
        linear: Any = layer.get_submodule(name)
        linear.weight.copy_(linear.weight[order])
        if linear.bias is not None:
            linear.bias.copy_(linear.bias[order])
    down: Any = layer.get_submodule(reads)
    down.weight.copy_(down.weight[:, order])


def _attention(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """[heads, pairs] of queries and keys [texts, tokens, heads, features]: of pairs of tokens that count."""
    scores = torch.einsum("bihd,bjhd->hbij", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(mask[:, None] == 0, -torch.inf).softmax(-1)
    return weights[:, (mask[:, None] * mask[:, :, None]) > 0]


def _neighbours(alike: Tensor, joined: int) -> list[int]:
    """An order in which each group of `joined` is alike: the most alike pair first, then whoever is most like them."""
    left, order = set(range(len(alike))), []
    while left:
        rest = sorted(left)
        likeness = alike[rest][:, rest].fill_diagonal_(-2.0)
        group = [rest[int(likeness.argmax()) // len(rest)]] if len(rest) > 1 else rest
        left -= {*group}
        while len(group) < joined:
            group.append(max(sorted(left), key=lambda head: float(alike[head][group].sum())))
            left.remove(group[-1])
        order += group
    return order
