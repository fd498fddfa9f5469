"""Sums, products, powers, comparisons and choices, element by element."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ...graph.ends import ends
from ...graph.graph import Builder, Node, within
from ..lowering import Lowering
from ..masks import bounded, finite, is_low, is_mask, split
from ..values import Operand, Value, known, owner_of, type_of
from . import builds, rule
from .shapes import dims_of

MOST_MULTIPLES = 128
_NEAR_ZERO = 2.0**-14  # as near to it as roundings bring what is 0

rule("neg")(builds(Builder.neg))
rule("relu")(builds(Builder.relu))
rule("sides")(builds(Builder.sides))
rule("exp_by_cell")(builds(Builder.exp))
rule("fourier")(builds(Builder.fourier))
rule("bitwise_not", "logical_not")(builds(Builder.complement))


@rule("add")
def add(lowering: Lowering, x: Operand, y: Operand, *, alpha: float = 1) -> Node:
    b = lowering.builder
    if all(isinstance(v, Value) and type_of(v) == torch.bool for v in (x, y)):
        return either(lowering, x, y)
    left, right = lowering.as_node(bounded(lowering, x)), lowering.as_node(bounded(lowering, y))
    if alpha != 1:
        right = b.scale(right, float(alpha))
    return b.add(left, right)


@rule("sub")
def sub(lowering: Lowering, x: Operand, y: Operand, *, alpha: float = 1) -> Node:
    if isinstance(y, Value) and y.owner != "shared" and isinstance(y.value, Tensor):
        negative = lowering.apply("aten.neg.default", y)
        if is_mask(lowering, negative):  # which is taken away
            return add(lowering, x, negative, alpha=alpha)
    b, right = lowering.builder, lowering.as_node(y)
    left = lowering.as_node(bounded(lowering, x))
    return b.sub(left, right if alpha == 1 else b.scale(right, float(alpha)))


@rule("rsub")
def rsub(lowering: Lowering, x: Operand, y: Operand, alpha: float = 1) -> Node:
    return sub(lowering, y, x, alpha=alpha)


@rule("mul", "__and__", "bitwise_and", "logical_and")
def mul(lowering: Lowering, x: Operand, y: Operand) -> Node:
    """A product with a client's mask is one with each of its factors: the public ones cost nothing."""
    if owner_of(x) == "client":
        x, y = y, x
    node = lowering.as_node(x)
    factors = (y.factors if isinstance(y, Value) and y.owner == "client" else ()) or (y,)
    for factor in sorted(factors, key=lambda f: owner_of(f) != "client"):
        node = lowering.builder.mul(node, lowering.as_node(factor))
    return node


@rule("__or__", "bitwise_or", "logical_or")
def either(lowering: Lowering, x: Operand, y: Operand) -> Node:
    b, left, right = lowering.builder, lowering.as_node(x), lowering.as_node(y)
    return b.sub(b.add(left, right), b.mul(left, right))


@rule("bitwise_xor", "logical_xor", "__xor__")
def unlike(lowering: Lowering, x: Operand, y: Operand) -> Node:
    b, left, right = lowering.builder, lowering.as_node(x), lowering.as_node(y)
    return b.sub(b.add(left, right), b.ldexp(b.mul(left, right), 1))


@rule("div")
def div(lowering: Lowering, x: Operand, y: Operand, *, rounding_mode: str | None = None) -> Node:
    if rounding_mode == "floor":
        return floor_divide(lowering, x, y)
    if rounding_mode is not None:
        raise lowering.fail('a secret divided with rounding_mode="trunc" has no rule; take "floor"')
    if owner_of(y) == "public":
        inverse = 1.0 / torch.as_tensor(known(y), dtype=torch.float64)
        return lowering.builder.mul(lowering.as_node(x), lowering.builder.constant(inverse))
    if isinstance(y, Node) or owner_of(y) == "shared":
        return reciprocal(lowering, y)
    return mul(lowering, x, lowering.apply("aten.reciprocal.default", y))


@rule("floor_divide")
def floor_divide(lowering: Lowering, x: Operand, y: Operand) -> Node:
    """How often y goes into x: a comparison for each multiple of y that x may pass."""
    b, node, number = lowering.builder, lowering.as_node(x), _number(lowering, y)
    low, high = (math.floor(end / number) if math.isfinite(end) else end for end in ends(node))
    if number <= 0 or high - low > MOST_MULTIPLES:
        raise lowering.fail(
            f"a secret's integer division may pass at most {MOST_MULTIPLES} multiples of a divisor above 0; clamp it"
        )
    between = 0.5 if isinstance(x, Value) and not x.dtype.is_floating_point else 0.0  # of whole numbers
    passed = (b.complement(b.less(node, k * number - between)) for k in range(round(low) + 1, round(high) + 1))
    return functools.reduce(b.add, passed, b.constant(torch.full(node.shape, float(low))))


@rule("remainder")
def remainder(lowering: Lowering, x: Operand, y: Operand) -> Node:
    b, number = lowering.builder, _number(lowering, y)
    rest = b.sub(lowering.as_node(x), b.scale(floor_divide(lowering, x, y), number))
    return within(rest, [b.constant(torch.tensor([0.0, number - 1 if number == int(number) else number]))])


@rule("eq")
def equal(lowering: Lowering, x: Operand, y: Operand) -> Node:
    if not isinstance(x, Value) or x.dtype.is_floating_point:
        raise lowering.fail("a secret is never quite equal to a number; compare by < or >")
    b, node, number = lowering.builder, lowering.as_node(x), _number(lowering, y)
    return b.sub(b.less(node, number + 0.5), b.less(node, number - 0.5))


@rule("ne")
def different(lowering: Lowering, x: Operand, y: Operand) -> Node:
    return lowering.builder.complement(equal(lowering, x, y))


@rule("any")
def any_of(lowering: Lowering, x: Operand, dims: int | None = None, keepdim: bool = False) -> Node:
    b, bits = lowering.builder, as_bits(lowering, x)
    return b.complement(b.less(b.sum(bits, dims_of(bits, dims), keepdim), 0.5))


@rule("all")
def all_of(lowering: Lowering, x: Operand, dims: int | None = None, keepdim: bool = False) -> Node:
    b, bits = lowering.builder, as_bits(lowering, x)
    return b.less(b.sum(b.complement(bits), dims_of(bits, dims), keepdim), 0.5)


@rule("unless_known")
def unless_known(lowering: Lowering, approximated: Operand, x: Operand, function: str) -> Node:
    """A function of a secret, by the plan's approximation."""
    return lowering.as_node(approximated)


@rule("reciprocal")
def reciprocal(lowering: Lowering, x: Operand) -> Node:
    raise lowering.fail(
        "a divisor is 0 or less in calibration, or exact in the plan; keep it above 0; choose a reciprocal"
    )


@rule("rsqrt", "sqrt")
def root(lowering: Lowering, x: Operand) -> Node:
    raise lowering.fail(
        "a root's argument is 0 or less in calibration, or exact in the plan; keep it above 0, use rsqrt"
    )


@rule("pow", "square")
def power(lowering: Lowering, x: Operand, exponent: float = 2) -> Node:
    b, node = lowering.builder, lowering.as_node(x)
    if not isinstance(exponent, int | float):
        raise lowering.fail("a power whose exponent is a secret has no rule; take exp(exponent * log(number))")
    if exponent == 2:
        return b.mul(node, node)
    if exponent in range(5):
        return b.polynomial(node, [0.0] * int(exponent) + [1.0])
    if exponent in range(9):
        return b.mul(power(lowering, node, 4), power(lowering, node, exponent - 4))
    if exponent % 1 == 0.5:
        return root(lowering, x)
    shown = exponent if isinstance(exponent, int | float) else "of a tensor"
    raise lowering.fail(f"a secret to the power {shown} has no rule; take halves and whole numbers up to 8")


@rule("polynomial")
def polynomial(lowering: Lowering, x: Operand, coefficients: list[float], domain: float = 0.0) -> Node:
    b, node = lowering.builder, lowering.as_node(x)
    if node.op == "ldexp":  # c_k (x 2^e)^k: the power of two goes into the coefficients, the opening stays x's own
        e = node.attributes["exponent"]
        return b.polynomial(node.args[0], [c * 2.0 ** (e * k) for k, c in enumerate(coefficients)], domain * 2.0**-e)
    return b.polynomial(node, list(coefficients), domain)


@rule("levels")
def levels(
    lowering: Lowering,
    x: Operand,
    rows: list[float],
    count: int,
    cells: int,
    widths: list[float],
    first: int,
    power: float,
) -> Node:
    tables = torch.tensor(rows, dtype=torch.float64).reshape(-1, cells, count)
    return lowering.builder.levels(lowering.as_node(x), tables, widths, first, power)


@rule("reached")
def reached(lowering: Lowering, x: Operand, keep: Operand | None, start: float, width: float, cells: int) -> Node:
    b, node = lowering.builder, lowering.as_node(x)
    mask = None if keep is None else lowering.as_node(keep)
    if mask is not None and mask.owner != "public":  # who counts is private: all others go to the first cell
        node, start = b.sub(node, b.constant(float(start))), 0.0
        if mask.owner != "client":
            node, mask = b.mul(node, mask), None
    return b.slice(b.reached(node, mask, start, width, cells), -1, 1, cells)


@rule("prelu", "_prelu_kernel")
def prelu(lowering: Lowering, x: Operand, slope: Operand) -> Node:
    """x above 0, slope x below; one slope, or one for each of dimension 1."""
    b, node, wide = lowering.builder, lowering.as_node(x), lowering.as_node(slope)
    if len(wide.shape) == 1 and len(node.shape) > 1:
        assert isinstance(slope, Value)
        wide = lowering.as_node(lowering.apply("aten.reshape.default", slope, [-1, *[1] * (len(node.shape) - 2)]))
    negative = b.mul(b.less(node, 0.0), node)
    return b.add(b.sub(node, negative), b.mul(negative, wide))


@rule("abs")
def absolute(lowering: Lowering, x: Operand) -> Node:
    b, node = lowering.builder, lowering.as_node(x)
    return within(b.sub(node, b.ldexp(b.mul(b.less(node, 0.0), node), 1)), [node, b.neg(node)], 0.0)


# --- comparisons -----------------------------------------------------------------------------------------------------
@rule("lt")
def less(lowering: Lowering, x: Operand, y: Operand) -> Node:
    return lowering.builder.less(lowering.as_node(x), _number(lowering, y))


@rule("le")
def at_most(lowering: Lowering, x: Operand, y: Operand) -> Node:
    """Less than what is above y by less than fixed point tells apart, and by enough to outlast a factor."""
    number = _number(lowering, y)
    return lowering.builder.less(lowering.as_node(x), number + max(abs(number) * 2.0**-50, 2.0**-60))


@rule("ge")
def at_least(lowering: Lowering, x: Operand, y: Operand) -> Node:
    return lowering.builder.complement(less(lowering, x, y))


@rule("gt")
def greater(lowering: Lowering, x: Operand, y: Operand) -> Node:
    return lowering.builder.complement(at_most(lowering, x, y))


def as_bits(lowering: Lowering, x: Operand) -> Node:
    """1 where x is not 0, nor within a few roundings of it."""
    b, node = lowering.builder, lowering.as_node(x)
    if isinstance(x, Value) and type_of(x) == torch.bool:
        return node
    return b.add(b.complement(b.less(node, _NEAR_ZERO)), b.less(node, -_NEAR_ZERO))


def _number(lowering: Lowering, y: Operand) -> float:
    """That something is compared with."""
    number = torch.as_tensor(known(y)) if owner_of(y) == "public" else None
    if number is None or number.numel() != 1:
        raise lowering.fail("comparison of two tensors; compare their difference with a number")
    return float(number)


@rule("clamp")
def clamp(lowering: Lowering, x: Operand, low: float | None = None, high: float | None = None) -> Node:
    """Both comparisons share one opening of x."""
    b, node = lowering.builder, lowering.as_node(x)
    out = node
    if low is not None and high is not None:
        low = min(low, high)  # as torch has it
    if low is not None and low > -math.inf:
        out = b.add(out, b.mul(b.less(node, float(low)), b.sub(b.constant(float(low)), node)))
    if high is not None and high < math.inf:
        above = b.complement(b.less(node, float(high)))
        out = b.add(out, b.mul(above, b.sub(b.constant(float(high)), node)))
    return within(out, [node], -math.inf if low is None else low, math.inf if high is None else high)


# Masks of attention: where they hide scores, and the scores without them (models/lowering/masks.py).


@rule("where")
def where(lowering: Lowering, condition: Operand, x: Operand, y: Operand) -> Node:
    """A number that only a mask would hold is noted as a mask, where the condition is known to somebody."""
    node = lowering.builder.where(*(lowering.as_node(finite(v)) for v in (condition, x, y)))
    for scores, other, keeps in ((x, y, "aten.clone.default"), (y, x, "aten.logical_not.default")):
        if is_low(other) and isinstance(condition, Value) and condition.owner != "shared":
            lowering.hiding[id(node)] = node, lowering.apply(keeps, condition), lowering.as_node(scores)
    return node


@rule("masked_fill")
def masked_fill(lowering: Lowering, x: Operand, mask: Operand, value: Operand) -> Node:
    return where(lowering, mask, value, x)


@rule("keeps")
def keeps(lowering: Lowering, x: Operand) -> Value:
    """1 where no mask hides a score."""
    node = lowering.as_node(x)
    masks, _ = split(lowering, node)
    if len({mask.owner for mask in masks} - {"public"}) > 1:
        raise lowering.fail(
            "client and server masks hide the same scores; register_buffer the server's with persistent=False"
        )
    keys = (*(1 for _ in node.shape[1:]), node.shape[-1])
    keep = Value("public", torch.ones(keys))
    for number, mask in enumerate(masks):
        keep = lowering.apply("aten.logical_and.default", keep, mask) if number else mask
    shape = keep.tensor.shape
    if shape[-1:] != keys[-1:]:  # the same for all keys: queries that see none
        keep = lowering.apply("aten.expand.default", keep, [*shape[:-1], keys[-1]])
    return lowering.apply("aten.to.dtype", keep, torch.float32)


@rule("unmasked")
def unmasked(lowering: Lowering, x: Operand) -> Node:
    """The scores without their masks, 0 where these hide them."""
    masks, scores = split(lowering, lowering.as_node(x))
    for mask in masks:
        scores = mul(lowering, scores, mask)
    return scores
