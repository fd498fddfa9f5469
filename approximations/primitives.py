"""The few operations, beyond ``+ - *`` and matrix products, that an approximation may be built of.

On secret shares each costs a known number of openings: a polynomial one, whatever its degree; comparisons of one
tensor with public thresholds share one; a product with a power of two is free. There is no division, no ``exp``,
no square root and no absolute value: approximations build them from these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._library.custom_ops import CustomOpDef

FUNCTIONS: dict[str, Callable[..., Tensor]] = {}
"""What computes each operation of ours, by name. A process that trains and exports nothing calls it so: the first call
through torch's dispatcher imports torch's compiler, 1.5 seconds and 90 MB."""


def operation(name: str) -> Callable[[Callable[..., Tensor]], CustomOpDef]:
    """A function as an operation of torch, which export keeps whole: blindformer::name."""

    def define(function: Callable[..., Tensor]) -> CustomOpDef:
        FUNCTIONS[name] = function
        return torch.library.custom_op(f"blindformer::{name}", function, mutates_args=())

    return define


@operation("polynomial")
def _polynomial(x: Tensor, coefficients: Sequence[float], domain: float = 0.0) -> Tensor:
    # Half precision cannot hold the powers of an activation, so Horner's rule runs in float32 at least.
    work = x if x.dtype == torch.float64 else x.float()
    result = torch.full_like(work, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result.mul_(work).add_(coefficient)
    # Outside its interval a polynomial may overflow; the result is then multiplied by an exact 0, and 0 * inf is NaN.
    limit = torch.finfo(x.dtype).max
    return result.clamp_(-limit, limit).to(x.dtype)


@_polynomial.register_fake
def _(x: Tensor, coefficients: Sequence[float], domain: float = 0.0) -> Tensor:
    return torch.empty_like(x)


def _keep_all(ctx, inputs, output) -> None:
    x, *ctx.constants = inputs
    ctx.save_for_backward(x)


def _backward(ctx, gradient: Tensor):
    (x,) = ctx.saved_tensors
    derivative = [k * c for k, c in enumerate(ctx.constants[0])][1:]
    return gradient * _polynomial(x, derivative or [0.0]), None, None


_polynomial.register_autograd(_backward, setup_context=_keep_all)


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


@operation("levels")
def _levels(
    x: Tensor, rows: Sequence[float], count: int, cells: int, widths: Sequence[float], first: int, power: float
) -> Tensor:
    work = x if x.dtype == torch.float64 else x.float()
    tables = torch.tensor(rows, dtype=work.dtype, device=x.device).reshape(len(widths), cells, count)
    result = torch.zeros_like(work)
    for level, width in reversed(list(enumerate(widths))):
        cell = (work / width).floor()
        at, place = cell.long() % cells, work / width - cell
        value = tables[level, at, -1]
        for degree in range(count - 2, -1, -1):
            value = value * place + tables[level, at, degree]
        result = value + (at < first) * result
    return result.to(x.dtype)


@_levels.register_fake
def _(
    x: Tensor, rows: Sequence[float], count: int, cells: int, widths: Sequence[float], first: int, power: float
) -> Tensor:
    return torch.empty_like(x)


def _levels_backward(ctx, gradient: Tensor):
    (x,) = ctx.saved_tensors
    rows, count, cells, widths, first, power = ctx.constants
    size = cells * count
    slopes = [c * (k % count) / widths[k // size] for k, c in enumerate(rows) if k % count]
    return gradient * _levels(x, slopes, count - 1, cells, widths, first, power), *(None,) * 6


_levels.register_autograd(_levels_backward, setup_context=_keep_all)


def levels(
    x: Tensor, tables: Sequence[Sequence[Sequence[float]]], widths: Sequence[float], first: int, power: float
) -> Tensor:
    """f(x) = table_0(x) + [x is in the first cells of table 0] (table_1(x) + ...): each table says the polynomial of
    x's cell at x's place there. Row j is of [j width, (j + 1) width), coefficients ascending, of x / width - j.

    Rows, at least of degree 1: a power of two; widths: powers of two. Rows must be right from one cell below their own
    on, and the last one must not count: parties on secrets may read the row above. Beyond a table it begins anew. On
    secrets a table costs no message where x is open already; several are joined two by two, each time a round.

    The result is x^power: for x times a factor the rows are the same times the factor^-power.
    """
    flat = [float(c) for table in tables for row in table for c in row]
    count, cells = len(tables[0][0]), len(tables[0])
    return torch.ops.blindformer.levels(x, flat, count, cells, [float(width) for width in widths], first, power)


@operation("reached")
def reached(x: Tensor, keep: Tensor | None, start: float, width: float, cells: int) -> Tensor:
    """1 where any of x [..., n], or of those that `keep` (0 or 1) keeps, lies in a cell or above it: [..., cells - 1],
    of all cells but the first. Parties may find the next cell."""
    cell = ((x - start) / width).floor() % cells
    each = cell.unsqueeze(-1) >= torch.arange(1, cells, device=x.device)
    return (each if keep is None else each & keep.unsqueeze(-1).bool()).any(-2).to(x.dtype)


@reached.register_fake
def _(x: Tensor, keep: Tensor | None, start: float, width: float, cells: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], cells - 1))


reached.register_autograd(
    lambda ctx, gradient: (gradient.new_zeros(ctx.shape), None, None, None, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "shape", inputs[0].shape),
)


@operation("exp_by_cell")
def exp_by_cell(x: Tensor, start: float, width: float, cells: int, depth: float) -> Tensor:
    """e^x in the last cells of those from `start`, 0 in those that end `depth` before the last one, which must not
    count."""
    most = cells * width
    within = start + (x - start) % most
    return torch.where(within < start + most - width - depth, 0.0, within.exp())


exp_by_cell.register_fake(lambda x, start, width, cells, depth: torch.empty_like(x))
exp_by_cell.register_autograd(
    lambda ctx, gradient: (gradient * ctx.saved_tensors[0], None, None, None, None),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
)


@operation("fourier")
def _fourier(
    x: Tensor, cosines: Sequence[float], sines: Sequence[float], period: float, domain: float, slope: float
) -> Tensor:
    angle = (x if x.dtype == torch.float64 else x.float()) * (2 * math.pi / period)
    result, turned = torch.zeros_like(angle), torch.empty_like(angle)
    for wave, coefficients in ((torch.cos_, cosines), (torch.sin_, sines)):
        for n, coefficient in enumerate(coefficients):
            if coefficient:
                result.add_(wave(torch.mul(angle, n, out=turned)), alpha=coefficient)
    return result.add_(x, alpha=slope).to(x.dtype)


@_fourier.register_fake
def _(
    x: Tensor, cosines: Sequence[float], sines: Sequence[float], period: float, domain: float, slope: float
) -> Tensor:
    return torch.empty_like(x)


def _fourier_backward(ctx, gradient: Tensor):
    (x,) = ctx.saved_tensors
    cosines, sines, period, domain, slope = ctx.constants
    turn = 2 * math.pi / period
    rising, falling = ([n * turn * c for n, c in enumerate(some)] for some in (sines, cosines))
    slopes = _fourier(x, rising, [-c for c in falling], period, domain, 0.0)
    return gradient * (slopes + slope), None, None, None, None, None


_fourier.register_autograd(_fourier_backward, setup_context=_keep_all)


def fourier(
    x: Tensor,
    period: float,
    *,
    cosines: Sequence[float] = (),
    sines: Sequence[float] = (),
    domain: float,
    slope: float = 0.0,
) -> Tensor:
    """sum_n cosines[n] cos(2 pi n x / period) + sines[n] sin(2 pi n x / period) + slope x, elementwise.

    period: as of `whole_periods`. slope: 0, or a power of two. domain: the largest |x| whose result is used, as for
    `polynomial`. On secrets this is one opening of x, which all that reads x shares, and no message more.
    """
    return torch.ops.blindformer.fourier(x, list(cosines), list(sines), float(period), float(domain), float(slope))


def whole_periods(period: float) -> tuple[float, int]:
    """A power of two, and how many periods it is: 1, 3, 5 or 7. Errors: ValueError for a period that has none."""
    for count in (1, 3, 5, 7):
        whole = 2.0 ** round(math.log2(period * count))
        if math.isclose(whole, period * count, rel_tol=1e-9):
            return whole, count
    raise ValueError(f"a series of period {period:g}: give a power of two, or that over 3, 5 or 7")


@operation("unless_known")
def unless_known(approximated: Tensor, x: Tensor, function: str) -> Tensor:
    """An approximated function of x. Where x turns out to be no secret, lowering takes the exact one of ATen."""
    return approximated.clone()


unless_known.register_fake(lambda approximated, x, function: torch.empty_like(x))
unless_known.register_autograd(lambda ctx, gradient: (gradient, None, None))


def below(x: Tensor, threshold: float) -> Tensor:
    """1 where x < threshold, else 0, in x's own type, so that bits can be added and multiplied."""
    return (x < threshold).to(x.dtype)


@operation("sides")
def _sides(x: Tensor, low: float, high: float, tolerance: float) -> Tensor:
    return torch.cat([(x >= low) & (x < high), x >= high], -1).to(x.dtype)


_sides.register_fake(lambda x, low, high, tolerance: x.new_empty((*x.shape[:-1], 2 * x.shape[-1])))
_sides.register_autograd(lambda ctx, gradient: (None, None, None, None))


def sides(x: Tensor, low: float, high: float, tolerance: float) -> tuple[Tensor, Tensor]:
    """1 where low <= x < high, and 1 where x >= high, in x's own type. `tolerance`: how
    near to a threshold either answer will do; on secrets fewer bits are compared then."""
    row = x if x.dim() else x.reshape(1)
    both, n = _sides(row, low, high, tolerance), row.shape[-1]
    return both[..., :n].reshape(x.shape), both[..., n:].reshape(x.shape)


def above(x: Tensor, threshold: float) -> Tensor:
    """1 where x > threshold, else 0, in x's own type."""
    return (x > threshold).to(x.dtype)
