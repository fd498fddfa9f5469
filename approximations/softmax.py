"""Softmax as numerators and denominators, so that the division may come after the mixing of values.

Every function takes scores [..., keys], keep, a mask of 1 and 0 that broadcasts to the scores (or None), and scale, a
factor that the scores still lack, and returns (numerators [..., keys], denominators [..., 1]), the second the sum of
the first, or None where nothing is divided by. A mask is a factor or a public shift; minus infinity never appears. A
row that keeps no key has numerators 0, and a denominator that is not.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import all_or_kept, by_group, keep_and_scores, none_kept, scaled_scores, split_mask
from .errors import PlanError
from .exp import exp_below_zero, exp_coefficients, squared
from .linear_attention import RANK, check_options, scores_of_few, sees_the_same, sums_of_values
from .overrides import Overrides
from .primitives import above
from .reciprocal import divide_within
from .registry import Constants, Range, approximation, define_kind


class Parts(NamedTuple):
    """`within`: the bounds that the denominators keep by construction; None: those that calibration finds."""

    numerators: Tensor
    denominators: Tensor | None
    within: Range | None = None


def _mixed(
    overrides: Overrides, site: str, parts: Parts, most: float, values: Tensor | None, dropout: float = 0.0
) -> Tensor:
    """numerators / denominators, mixed with values [..., keys, features] if given: the division then comes last."""
    numerators, denominators, within = parts
    if dropout > 0.0:
        numerators = F.dropout(numerators, dropout)
    mixed = numerators if values is None else by_group(numerators, values)
    return mixed if denominators is None else mixed * divide_within(overrides, site, denominators, most, within)


def _softmax(overrides: Overrides, func: Any, input: Tensor, dim: Any = None, *rest: Any, **kwargs: Any) -> Tensor:
    """Softmax of scores that may have an additive mask in them already."""
    exact = lambda: func(input, dim, *rest, **kwargs)  # noqa: E731
    dtype = kwargs.get("dtype") or next((r for r in rest if isinstance(r, torch.dtype)), None)
    if not isinstance(dim, int):
        return exact()
    x, site = input if dtype is None else input.to(dtype), overrides.site("softmax")
    chosen, constants = overrides.approximation("softmax", site)
    if chosen.function is None and overrides.observer is None:
        return exact()
    if chosen.features:
        raise PlanError(f"{site}: softmax {chosen.name} needs queries and keys; load with attn_implementation='sdpa'")
    last = dim in (-1, x.dim() - 1)
    keep, scores = keep_and_scores(x if last else x.transpose(dim, -1))
    overrides.show(site, "softmax", scores)
    if chosen.function is None:
        return exact()
    parts = chosen.function(scores, all_or_kept(keep), **constants)
    result = _mixed(overrides, site, parts, chosen.most * scores.shape[-1], None)
    return result if last else result.transpose(dim, -1)


def _attention(
    overrides: Overrides,
    func: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention, divided after the mixing of values."""
    options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
    exact = lambda: func(query, *keys_and_values, attn_mask, dropout_p, is_causal, **options)  # noqa: E731
    keys_and_values, site = (key, value), overrides.site("softmax")
    chosen, constants = overrides.approximation("softmax", site)
    if chosen.function is None and overrides.observer is None:
        return exact()
    keep, bias = split_mask(attn_mask, query, key, is_causal)
    if chosen.features and chosen.function is not None:
        if bias is not None:
            raise PlanError(
                f"{site}: softmax {chosen.name} has no scores to add to, and this model adds some; choose another"
            )
        scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
        if not torch.compiler.is_exporting():
            overrides.note_keys(not is_causal and sees_the_same(keep))
        constants = chosen.function(**constants)
        if overrides.observer is not None:
            overrides.show(site, "softmax", scores_of_few(query, key, constants["rank"]) * scale)
        mixed, total = sums_of_values(query, key, value, keep, scale, overrides.same_keys, dropout_p, **constants)
        return mixed * divide_within(overrides, site, total, 0.0, None)
    scores, factor = scaled_scores(query, key, scale, bias)
    if overrides.observer is not None:
        overrides.show(site, "softmax", scores * factor)
    if chosen.function is None:
        return exact()
    parts = chosen.function(scores, keep, factor, **constants)
    return _mixed(overrides, site, parts, chosen.most * key.shape[-2], value, dropout_p)


define_kind(
    "softmax",
    answers={
        F.softmax: _softmax,
        torch.softmax: _softmax,
        Tensor.softmax: _softmax,
        F.scaled_dot_product_attention: _attention,
    },
    presets={"faithful": "table", "fast": "2quad", "he": "square"},
    search=("2quad", "2relu", "linear"),
    operations=("softmax", "_softmax", "scaled_dot_product_attention"),
    limit=12.0,
)


def _parts(numerators: Tensor, keep: Tensor | None, alone: float = 1.0) -> Parts:
    """Numerators and their sum; ``alone``: what it is where no key is kept, which nothing is divided by in earnest."""
    total = numerators.sum(-1, keepdim=True)
    return Parts(numerators, total if keep is None else total + none_kept(keep) * alone)


def _power_of_two(number: float) -> float | None:
    """The power of two that the number is (but for rounding), if it is one."""
    nearest = 2.0 ** round(math.log2(number))
    return nearest if math.isclose(nearest, number, rel_tol=1e-12) else None


@approximation(
    "softmax", "2quad", needs_distillation=True, source="MPCFormer, arXiv:2211.01452, section 3.2", least=2.0**-6
)
def two_quad(
    scores: Tensor, keep: Tensor | None, scale: float = 1.0, *, shift: float = 5.0, epsilon: float = 0.0
) -> Parts:
    """(x + c)^2 + epsilon over its sum, c = 5.

    Epsilon keeps a row of few keys, as pooled tokens have, from dividing by zero: all of its scores may be near -c.
    With x = a y this is a^2 (y + c / a)^2. As a^2 = 1 / features mostly is a power of two, it then costs nothing.
    """
    factor = _power_of_two(scale * scale)
    if factor is None:
        scores, scale, factor = scores * scale, 1.0, 1.0
    shifted = scores + shift / scale
    squares = shifted * shifted * factor
    squares = squares + epsilon if epsilon else squares
    return _parts(squares if keep is None else squares * keep, keep, shift * shift + epsilon)


def fit_square(low: float, high: float, shift: float = 5.0) -> Constants:
    """The gain that makes the weights of scores spread over the middle half of the range add up to 1, on average."""
    middle, half = (low + high) / 2 + shift, (high - low) / 4
    return {"shift": shift, "gain": round(1.0 / max(middle * middle + half * half / 3, 2.0**-10), 10)}


@approximation(
    "softmax",
    "square",
    needs_distillation=True,
    source="Blindformer, after MPCFormer's 2Quad: its numerator, calibrated",
    fit=fit_square,
)
def square(scores: Tensor, keep: Tensor | None, scale: float = 1.0, *, shift: float, gain: float) -> Parts:
    """gain (x + c)^2 / keys, without a division by secrets: who owns the mask divides it by the number of its keys."""
    squares = (scores + shift / scale) * (scores + shift / scale)
    factor = gain * scale * scale
    if keep is None:
        return Parts(squares * (factor / scores.shape[-1]), None)
    return Parts((squares * factor) * (keep / keep.sum(-1, keepdim=True).clamp(min=1.0)), None)


@approximation(
    "softmax",
    "2relu",
    needs_distillation=True,
    comparisons=1,
    source="MPCFormer, arXiv:2211.01452, section 3.2 (from Mohassel and Zhang, SecureML)",
    least=2.0**-6,
)
def two_relu(scores: Tensor, keep: Tensor | None, scale: float = 1.0, *, epsilon: float = 2.0**-5) -> Parts:
    """(relu(x) + epsilon / n) over its sum. Epsilon keeps a row without a positive score from dividing by zero."""
    numerators = torch.relu(scores * scale) + epsilon / scores.shape[-1]
    return _parts(numerators if keep is None else numerators * keep, keep)


@approximation(
    "softmax",
    "linear",
    needs_distillation=True,
    features=True,
    source="Blindformer: 2Quad of some features, summed as in arXiv:2006.16236",
    least=2.0**-11,  # as 2quad, whose numbers are c^2 times these
)
def linear(*, shift: float = 5.0, rank: float = RANK, epsilon: float = 0.0) -> Constants:
    """(x + c)^2 + epsilon over its sum, of `rank` features of queries and keys; c / scale is a power of two."""
    check_options(shift, rank, epsilon)
    return {"shift": shift, "rank": rank, "epsilon": epsilon}


MOST = 1.1  # of a numerator: 1, and what a maximum in few bits may miss, which all numerators of a row then share


def maximum(scores: Tensor, keep: Tensor | None, gap: float) -> Tensor:
    """The largest of each row that is kept: the others are pushed down by ``gap``, a function of the mask only."""
    if keep is None:
        return scores.amax(-1, keepdim=True)
    return (scores + (keep - 1.0) * gap).amax(-1, keepdim=True)


def _below_maximum(scores: Tensor, keep: Tensor | None, gap: float) -> Tensor:
    """Scores minus their row's largest; masked ones, and those of a row that keeps none, by ``gap`` less."""
    if keep is None:
        return scores - maximum(scores, keep, gap)
    return scores + (keep - 1.0) * gap - (maximum(scores, keep, gap) + none_kept(keep) * gap)


def gap_of(low: float, high: float, cut: float = 0.0) -> float:
    """A power of two that puts any masked score more than ``cut`` below any kept one."""
    return 2.0 ** math.ceil(math.log2(max(high - low, 0.0) + cut + 2.0))


def fit_exp(low: float, high: float, cut: float = 12.0, degree: float = 4, squarings: float = 2) -> Constants:
    """Constants of `exp` for logits in [low, high]."""
    coefficients = exp_coefficients(float(cut), int(degree), int(squarings))
    return {
        "gap": gap_of(low, high, cut),
        "cut": float(cut),
        "coefficients": list(coefficients),
        "squarings": float(int(squarings)),
    }


@approximation(
    "softmax",
    "exp",
    comparisons=1,
    source="Blindformer: weighted minimax of exp(x/4)",
    error=1.1e-4,
    domain=(-40.0, 0.0),
    fit=fit_exp,
    default_range=(-120.0, 120.0),
    least=0.99,
    most=MOST,
)
def exp(
    scores: Tensor,
    keep: Tensor | None,
    scale: float = 1.0,
    *,
    gap: float,
    cut: float,
    coefficients: list[float],
    squarings: float,
) -> Parts:
    """exp(x - max) = P(x/4)^4 above the cut, 0 below it."""
    return _parts(exp_below_zero(_below_maximum(scores * scale, keep, gap), cut, coefficients, squarings), keep)


def fit_exp_limit(low: float, high: float, cut: float = 12.0, squarings: float = 7) -> Constants:
    """Constants of `exp_limit` for logits in [low, high]."""
    return {"gap": gap_of(low, high, cut), "cut": float(cut), "squarings": float(int(squarings))}


@approximation(
    "softmax",
    "exp-limit",
    comparisons=1,
    source="CrypTen, arXiv:2109.00984; PUMA, arXiv:2307.12533",
    error=2.2e-3,
    domain=(-40.0, 0.0),
    fit=fit_exp_limit,
    default_range=(-120.0, 120.0),
    least=0.99,
    most=MOST,
)
def exp_limit(
    scores: Tensor, keep: Tensor | None, scale: float = 1.0, *, gap: float, cut: float, squarings: float
) -> Parts:
    """(1 + x/2^n)^(2^n) above the cut, 0 below it: n squarings one after the other."""
    x = _below_maximum(scores * scale, keep, gap)
    return _parts(squared((1.0 + x * 2.0**-squarings) * above(x, -cut), squarings), keep)
