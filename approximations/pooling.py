"""Fewer tokens in later layers: after chosen layers two neighbouring tokens become one, their mean.

It is Funnel-Transformer's pooling (Z. Dai et al., arXiv:2006.03236) with a mean, which is linear: under secret sharing
it costs one product of a token's features with a weight that depends on the mask alone, and nothing where the mask is
public. A layer that computes on fewer tokens gives as many as it was given: each result is repeated for the tokens that
it stands for, so heads, poolings of sentences and a teacher's states fit as before, and the next layer takes the
results before they were repeated.

Padding never enters a mean: of a pair with one token the mean is that token. So an answer depends on the tokens alone,
not on the length that they were padded to; an odd last token stays itself.

B texts, N tokens, H features.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .attention import keep_and_scores
from .errors import PlanError

COUNTS = ("num_hidden_layers", "n_layers", "n_layer")
MASKS = ("attention_mask", "attn_mask", "mask")
_BY_TOKEN = ("position_embeddings", "position_ids")
_OF_PAIRS = ("position_bias",)


def layer_count(model: nn.Module) -> int | None:
    """How many layers a model has, by its configuration; None if that does not say it."""
    config: Any = getattr(model, "config", None)
    counts = (getattr(config, name, None) for name in COUNTS)
    return next((count for count in counts if isinstance(count, int)), None)


def layers_path(model: nn.Module, count: int | None) -> str | None:
    """The path of the list that holds so many layers; None if there is none."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count and _are_layers(module):
            return path
    return None


def _are_layers(modules: nn.ModuleList) -> bool:
    """Whether they are of one class, and are called."""
    kinds = {type(module) for module in modules}
    return len(kinds) == 1 and kinds.pop().forward is not nn.ModuleList.forward


def check_pooling(model: nn.Module, pool: tuple[int, ...], plan: str) -> None:
    """Errors: PlanError for a model that cannot pool its tokens there."""
    if not pool:
        return
    count, kind = layer_count(model), type(model).__name__
    if count is None or layers_path(model, count) is None:
        raise PlanError(f"plan {plan}: pools tokens between layers, and {kind} has no list of layers; leave pool out")
    if pool[-1] >= count:
        raise PlanError(
            f"plan {plan}: pools tokens after {pool[-1]} layers, and {kind} has {count}; pool after at most {count - 1}"
        )
    writes = getattr(model, "can_generate", bool)
    if writes() or any(getattr(module, "is_causal", False) is True for module in model.modules()):
        raise PlanError(f"plan {plan}: pools tokens, and {kind} writes texts token by token; leave pool out")


@dataclass(frozen=True)
class FewerTokens:
    """What a layer gave before it was repeated. tokens: [B, ceil(N / 2^halvings), H]."""

    tokens: Tensor
    halvings: int


def on_fewer(
    layer: Callable[..., Any],
    signature: inspect.Signature,
    halvings: int,
    known: FewerTokens | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[Any, FewerTokens, Tensor]:
    """Call a layer on 1 / 2^halvings of the tokens that it is called with.

    known: its first argument's, where a layer before it pooled. Returns what the layer answers with as many tokens as
    were given, what it gave before, and the tokens of that answer.

    Errors: PlanError for an argument of which it is not known how it is by token.
    """
    bound = signature.bind(*args, **kwargs)
    name, x = next(iter(bound.arguments.items()))
    if not isinstance(x, Tensor) or x.dim() != 3:
        raise PlanError("pool: this model's layers do not read [texts, tokens, features]; leave pool out")
    tokens, done, given = x.shape[1], 0, dict(bound.arguments)
    del given[name]
    given |= given.pop(next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), ""), {})
    mask = next((given[key] for key in MASKS if isinstance(given.get(key), Tensor)), None)
    keep = None if mask is None else _kept_tokens(mask, x)
    if known is not None and known.halvings <= halvings:
        x, done = known.tokens, known.halvings
    for level in range(halvings):
        if level >= done:
            x = _means(x, keep)
        keep = None if keep is None else _either(keep)
    result = layer(x, **{key: _fewer(key, value, halvings, tokens) for key, value in given.items()})
    own = result[0] if isinstance(result, tuple) else result
    answer = own.unsqueeze(2).expand(-1, -1, 1 << halvings, -1).flatten(1, 2)
    answer = answer if answer.shape[1] == tokens else answer[:, :tokens]
    whole = (answer, *result[1:]) if isinstance(result, tuple) else answer
    return whole, FewerTokens(own, halvings), answer


def fewer_tokens(values: Tensor, keep: Tensor, halvings: int) -> tuple[Tensor, Tensor]:
    """Values [B, N, H] and which of their tokens count [B, N], both pooled."""
    for _ in range(halvings):
        values, keep = _means(values, keep), _either(keep)
    return values, keep


def _pairs(x: Tensor, dim: int = 1) -> tuple[Tensor, Tensor]:
    """Every first and every second along a dimension; an odd last one is a pair with itself."""
    dim %= x.dim()
    size = x.shape[dim]
    if size % 2:
        x = torch.cat([x, x.narrow(dim, size - 1, 1)], dim)
    pairs = x.unflatten(dim, (-1, 2))
    return pairs.select(dim + 1, 0), pairs.select(dim + 1, 1)


def _either(keep: Tensor) -> Tensor:
    """Of each pair, whether one of both counts."""
    first, second = _pairs(keep)
    return first + second - first * second


def _means(x: Tensor, keep: Tensor | None) -> Tensor:
    """first + w (second - first), where w is 1/2 of two tokens, 1 if only the second is one, else 0."""
    first, second = _pairs(x)
    if keep is None:
        return (first + second) * 0.5
    one, other = _pairs(keep)
    return first + (other * (1.0 - 0.5 * one)).unsqueeze(-1) * (second - first)


def _kept_tokens(mask: Tensor, x: Tensor) -> Tensor:
    """[B, N]: 1 for a token, 0 for padding, which no query sees.

    Errors: PlanError for a mask of another shape, and for one whose tokens only look back.
    """
    if mask.dim() not in (2, 4) or mask.shape[-1] != x.shape[1]:
        raise PlanError(f"pool: a mask {list(mask.shape)} is not one of {x.shape[1]} tokens; leave pool out")
    keep = keep_and_scores(mask)[0] if mask.is_floating_point() else mask.to(x.dtype)
    if mask.dim() == 2:
        return keep.expand(x.shape[0], -1)
    seen = keep[:, 0].amax(-2)
    if keep.shape[-2] == keep.shape[-1] and not torch.compiler.is_exporting():
        one_way = (keep[:, 0] != keep[:, 0].transpose(-1, -2)) & (seen[:, None, :] * seen[:, :, None] > 0)
        if bool(one_way.any()):
            raise PlanError("pool: this model's tokens only look back, and a mean would look ahead; leave pool out")
    return seen.expand(x.shape[0], -1)


def _fewer(name: str, value: Any, halvings: int, tokens: int) -> Any:
    """An argument beside the tokens, for fewer of them. A key counts if a token of its pair does."""
    if name in _BY_TOKEN and isinstance(value, tuple):
        return tuple(_fewer(name, part, halvings, tokens) for part in value)
    if not isinstance(value, Tensor):
        return value
    if name not in (*MASKS, *_BY_TOKEN):
        if tokens in value.shape or name in _OF_PAIRS:
            raise PlanError(f"pool: this model's layers read {name} of every token, which has no mean; leave pool out")
        return value
    for _ in range(halvings):
        if name in _BY_TOKEN:
            value = _pairs(value, -1 if value.dim() == 2 else -2)[0]
            continue
        if value.dim() == 4 and value.shape[-2] > 1:
            value = _pairs(value, -2)[0]
        value = torch.maximum(*_pairs(value, -1)) if value.dtype != torch.bool else torch.logical_or(*_pairs(value, -1))
    return value
