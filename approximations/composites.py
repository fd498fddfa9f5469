"""Functions that are made of approximated ones. A kind of such a function's own goes before what stands here."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .normalisation import affine
from .overrides import Overrides, Root, answer_in_parts, define_composites
from .primitives import unless_known
from .registry import EXACT

_LEAST_NORM = 1e-4  # one that is larger is no guard against zero, but part of the answer


def _elu(
    overrides: Overrides, func: Any, input: Tensor, alpha: float = 1.0, inplace: bool = False, scale: float = 1.0
) -> Tensor:
    """scale (x above 0, alpha (exp(x) - 1) below)."""
    low = -F.relu(-input)
    return scale * (F.relu(input) + alpha * (overrides.elementwise("exp", low, low.exp) - 1.0))


def _selu(overrides: Overrides, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
    return _elu(overrides, func, input, 1.6732632423543772, scale=1.0507009873554805)


def _mish(overrides: Overrides, func: Any, input: Tensor, inplace: bool = False) -> Tensor:
    soft = overrides.elementwise("softplus", input, lambda: F.softplus(input))
    return input * overrides.elementwise("tanh", soft, soft.tanh)


def _root(overrides: Overrides, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """x rsqrt(x); what divides by it multiplies by rsqrt(x)."""
    if not input.is_floating_point():
        return func(input, *args, **kwargs)
    inverse = overrides.elementwise("rsqrt", input, lambda: torch.rsqrt(input))
    exact = overrides.chosen("rsqrt") == EXACT
    result = func(input, *args, **kwargs) if exact else unless_known(input * inverse, input, "sqrt")
    overrides.roots[result] = Root(input, result)
    return result


def _power(overrides: Overrides, func: Any, input: Any, exponent: Any, *args: Any, **kwargs: Any) -> Tensor:
    """x to a half, or to less than 0: a power of the root, of the reciprocal, or of the reciprocal root."""
    plain = isinstance(exponent, int | float) and isinstance(input, Tensor) and input.is_floating_point()
    if not plain or exponent * 2 % 1 or (exponent >= 0 and exponent % 1 == 0):
        return func(input, exponent, *args, **kwargs)
    if exponent > 0:
        root = _root(overrides, torch.sqrt, input)
        return root if exponent == 0.5 else input ** int(exponent) * root
    kind, times = ("rsqrt", -2 * exponent) if exponent % 1 else ("reciprocal", -exponent)
    inverse = overrides.elementwise(kind, input, getattr(input, kind))
    return inverse if times == 1 else func(inverse, int(times))


def _glu(overrides: Overrides, func: Any, input: Tensor, dim: int = -1) -> Tensor:
    value, gate = input.chunk(2, dim)
    return value * overrides.elementwise("sigmoid", gate, gate.sigmoid)


def _exp_less_one(overrides: Overrides, func: Any, input: Tensor, **kwargs: Any) -> Tensor:
    return overrides.elementwise("exp", input, input.exp) - 1.0


def _log_sigmoid(overrides: Overrides, func: Any, input: Tensor) -> Tensor:
    return -overrides.elementwise("softplus", -input, lambda: F.softplus(-input))


def _log_sum_exp(overrides: Overrides, func: Any, input: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """Of a and b it is b + softplus(a - b): a tournament, as of the largest."""
    if not isinstance(dim, int):
        return func(input, dim, keepdim)
    sums = input.movedim(dim, -1)
    while (count := sums.shape[-1]) > 1:
        half = count // 2
        last, difference = sums[..., half : 2 * half], sums[..., :half] - sums[..., half : 2 * half]
        both = last + overrides.elementwise("softplus", difference, lambda: F.softplus(difference))  # noqa: B023
        sums = torch.cat([both, sums[..., 2 * half :]], -1)
    return sums.movedim(-1, dim) if keepdim else sums.squeeze(-1)


def _log_softmax(overrides: Overrides, func: Any, input: Tensor, dim: int, *rest: Any, **named: Any) -> Tensor:
    return input - _log_sum_exp(overrides, torch.logsumexp, input, dim, keepdim=True)


def _norm(
    overrides: Overrides, func: Any, x: Tensor, ord: Any = None, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> Tensor:
    """The Euclidean norm, by the root of the sum of squares. Older functions of it call its order p."""
    order = kwargs.pop("p", ord)
    other = {name: value for name, value in kwargs.items() if value is not None}
    of_matrices = func is torch.linalg.norm and order == 2 and not isinstance(dim, int) and x.dim() > 1
    if other or of_matrices or order not in (2, "fro", None) or not x.is_floating_point():
        return func(x, *([] if order is None else [order]), dim=dim, keepdim=keepdim, **other)
    squares = (x * x).sum(tuple(range(x.dim())) if dim is None else dim, keepdim=keepdim)
    return _root(overrides, torch.sqrt, squares)


def _of_length_one(
    overrides: Overrides, func: Any, input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None
) -> Tensor:
    """x over its norm. The least norm `eps` is left out: rows of zeros stay so whatever they are divided by."""
    if eps > _LEAST_NORM:
        return answer_in_parts(overrides, func, input, p, dim, eps)
    if p != 2 or out is not None or (overrides.chosen("rsqrt") == EXACT and overrides.observer is None):
        return func(input, p, dim, eps, out)
    squares = (input * input).sum(dim, keepdim=True)
    if overrides.observer is not None:
        squares = torch.where(squares > 0, squares, squares.amax())
    return input * overrides.elementwise("rsqrt", squares, lambda: torch.rsqrt(squares))


def _cosine(overrides: Overrides, func: Any, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    first, second = (_of_length_one(overrides, F.normalize, x, 2.0, dim, eps) for x in (x1, x2))
    return (first * second).sum(dim)


def _group_norm(
    overrides: Overrides,
    func: Any,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *rest: Any,
) -> Tensor:
    """A norm over each group of channels and all places, then a factor and a summand for each channel."""
    rows = input.reshape(len(input), num_groups, -1)
    with overrides:
        normed = F.layer_norm(rows, rows.shape[-1:], None, None, eps).reshape(input.shape)
    shape = [-1, *[1] * (input.dim() - 2)]
    return affine(normed, *(value if value is None else value.reshape(shape) for value in (weight, bias)))


def _deviation(overrides: Overrides, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return _root(overrides, torch.sqrt, input.var(*args, **kwargs))


define_composites(
    {
        F.multi_head_attention_forward: answer_in_parts,
        F.softsign: answer_in_parts,
        F.tanhshrink: answer_in_parts,
        F.elu: _elu,
        F.selu: _selu,
        torch.selu: _selu,
        F.mish: _mish,
        F.glu: _glu,
        **dict.fromkeys((torch.expm1, Tensor.expm1, torch.special.expm1), _exp_less_one),
        **dict.fromkeys((torch.pow, Tensor.pow, Tensor.__pow__), _power),
        **dict.fromkeys((torch.logsumexp, Tensor.logsumexp, torch.special.logsumexp), _log_sum_exp),
        **dict.fromkeys(
            (F.log_softmax, torch.log_softmax, Tensor.log_softmax, torch.special.log_softmax), _log_softmax
        ),
        F.logsigmoid: _log_sigmoid,
        F.normalize: _of_length_one,
        F.cosine_similarity: _cosine,
        **dict.fromkeys((F.group_norm, torch.group_norm), _group_norm),
        **dict.fromkeys((torch.std, Tensor.std), _deviation),
        **dict.fromkeys((torch.sqrt, Tensor.sqrt), _root),
        **dict.fromkeys((torch.linalg.vector_norm, torch.linalg.norm, torch.norm, Tensor.norm), _norm),
    }
)
