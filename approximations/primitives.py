"""The few operations, beyond ``+ - *`` and matrix products, that an approximation may be built of.

On secret shares each costs a known number of openings: a polynomial one, whatever its degree; comparisons of one
tensor with public thresholds share one; a product with a power of two is free. There is no division, no ``exp``,
no square root and no absolute value: approximations build them from these.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.library.custom_op("blindformer::polynomial", mutates_args=())
def _polynomial(x: Tensor, coefficients: Sequence[float], domain: float = 0.0) -> Tensor:
    # Half precision cannot hold the powers of an activation, so Horner's rule runs in float32 at least.
    work = x if x.dtype == torch.float64 else x.float()
    result = torch.full_like(work, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * work + coefficient
    # Outside its interval a polynomial may overflow; the result is then multiplied by an exact 0, and 0 * inf is NaN.
    limit = torch.finfo(x.dtype).max
    return result.clamp(-limit, limit).to(x.dtype)


@_polynomial.register_fake
def _(x: Tensor, coefficients: Sequence[float], domain: float = 0.0) -> Tensor:
    return torch.empty_like(x)


def _setup_context(ctx, inputs, output) -> None:
    x, ctx.coefficients, _ = inputs
    ctx.save_for_backward(x)


def _backward(ctx, gradient: Tensor):
    (x,) = ctx.saved_tensors
    derivative = [k * c for k, c in enumerate(ctx.coefficients)][1:]
    return gradient * _polynomial(x, derivative or [0.0]), None, None


_polynomial.register_autograd(_backward, setup_context=_setup_context)


def polynomial(x: Tensor, coefficients: Sequence[float], domain: float = 0.0) -> Tensor:
    """sum_k coefficients[k] x^k, elementwise, by Horner's rule.

    domain: the largest |x| whose result is used (0: every result is). Beyond it the result must meet an exact 0, and
    fixed point may let it wrap, which leaves more bits for the results that count.

    On secrets this is one opening of x whatever the degree; several polynomials of the same x share it. A polynomial
    of degree 1 is written as a product with a constant and a sum, which need no opening at all.
    """
    if not coefficients:
        raise ValueError("a polynomial needs at least one coefficient")
    if len(coefficients) == 2:
        return x * coefficients[1] + coefficients[0]
    return torch.ops.blindformer.polynomial(x, [float(c) for c in coefficients], float(domain))


@torch.library.custom_op("blindformer::unless_known", mutates_args=())
def unless_known(approximated: Tensor, x: Tensor, function: str) -> Tensor:
    """An approximated function of x. Where x turns out to be no secret, lowering takes the exact one of ATen."""
    return approximated.clone()


unless_known.register_fake(lambda approximated, x, function: torch.empty_like(x))
unless_known.register_autograd(lambda ctx, gradient: (gradient, None, None))


def below(x: Tensor, threshold: float) -> Tensor:
    """1 where x < threshold, else 0, in x's own type, so that bits can be added and multiplied."""
    return (x < threshold).to(x.dtype)


def above(x: Tensor, threshold: float) -> Tensor:
    """1 where x > threshold, else 0, in x's own type."""
    return (x > threshold).to(x.dtype)
