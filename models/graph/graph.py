"""The graph between a model and its Program: the same operations, on real numbers, before scales are placed.

Lowering builds it, passes rewrite it, calibration runs it in float, scales.py turns it into instructions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ...approximations.primitives import whole_periods
from ...protocols.operations import operations
from ...protocols.operations.fourier import POINTS

EXP_POINTS = 2048  # of a table of e^x: distances in a cell that lines cross


EVENS = "evens"  # the name of a constant: powers of two that bring the rows of a weight to one size


@dataclass(eq=False)
class Node:
    """One value. `owner`: public, server, client or shared. Sources carry `value` (the example's, for the client).

    A `weight` is of the model: the server's, or public, where its owner opens it to all who compute."""

    op: str
    args: list[Node] = field(default_factory=list, repr=False)  # a graph that shares much has no end in words
    attributes: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    owner: str = "shared"
    path: str = ""
    name: str = ""
    value: Tensor | None = None
    row: int = (
        0  # a difference of two elements of a row, in search of the largest: its dimension, counted from the last
    )
    search: bool = False  # a step in search of a row's largest element: their number depends on how long the row is
    among: list[Node] | None = field(default=None, repr=False)  # it lies between their ends, and between `limits`
    limits: tuple[float, float] = (-math.inf, math.inf)
    coarse: bool = False  # only the largest is asked for, not where it is: few fractional bits do

    @property
    def is_source(self) -> bool:
        return self.op == "state" or self.is_encoded

    @property
    def is_encoded(self) -> bool:
        """Whether it is a source that its readers get at any scale they ask for."""
        return self.op in ("client", "weight", "constant")

    def key(self) -> tuple[Any, ...]:
        """Equal keys compute equal values."""
        if self.is_source:
            return (id(self),)
        return (self.op, tuple(id(a) for a in self.args), repr(sorted(self.attributes.items())), self.shape)


def within(node: Node, among: list[Node], low: float = -math.inf, high: float = math.inf) -> Node:
    """The node, of which it is now known that it lies between the ends of these nodes, and these limits."""
    if all(other is not node for other in among):
        node.among, node.limits = among, (low, high)
    return node


def derived(value: Tensor, name: str, *of: Node) -> Node:
    """A weight that is computed from others: secret if one of them is."""
    owner = "server" if any(node.owner == "server" for node in of) else "public"
    return Node("weight", [], {}, tuple(value.shape), owner, of[0].path, name, value)


class Builder:
    """Creates nodes with their shapes; knows the identities that cost nothing to apply while building."""

    def __init__(self) -> None:
        self.path, self.searching = "", False

    def node(self, op: str, *args: Node, shape: tuple[int, ...], **attributes: Any) -> Node:
        if args and op not in ("expand", "ldexp") and all(arg.op == "constant" for arg in args):  # computed now
            values = (arg.value.double() for arg in args if arg.value is not None)
            return self.constant(operations()[op].on_reals(*values, **attributes).expand(shape))
        return Node(op, list(args), attributes, tuple(shape), path=self.path, search=self.searching)

    def constant(self, value: Tensor | float, name: str = "") -> Node:
        tensor = value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float64)
        shape, path = tuple(tensor.shape), self.path
        return Node("constant", shape=shape, owner="public", path=path, name=name, value=tensor, search=self.searching)

    # --- sums and products -------------------------------------------------------------------------------------------
    def add(self, x: Node, y: Node) -> Node:
        if _is_zero(y) and _covers(x, y):
            return x
        if _is_zero(x) and _covers(y, x):
            return y
        shape = _broadcast(x, y)
        return self.node("add", *(self._of_rank(arg, shape) for arg in (x, y)), shape=shape)

    def sub(self, x: Node, y: Node) -> Node:
        if _is_zero(y) and _covers(x, y):
            return x
        shape = _broadcast(x, y)
        return self.node("sub", *(self._of_rank(arg, shape) for arg in (x, y)), shape=shape)

    def _of_rank(self, x: Node, shape: tuple[int, ...]) -> Node:
        """A secret summand, of the result's rank if it has the result's elements: else its opening would be the sum's
        for several runs at once, whose ranks are made alike, and not for one."""
        same = x.owner == "shared" and x.shape != shape and math.prod(x.shape) == math.prod(shape)
        return self.reshape(x, shape) if same else x

    def neg(self, x: Node) -> Node:
        return self.node("neg", x, shape=x.shape)

    def mul(self, x: Node, y: Node) -> Node:
        if x.owner != "shared":
            x, y = y, x
        if y.owner == "public" and y.op == "client":  # known when it runs, and another number each time
            return self.node("mul_public", x, y, shape=_broadcast(x, y))
        if y.owner == "public":
            return self._times_constant(x, y)
        if y.owner in ("server", "client"):
            return self.node("mul_private", x, y, shape=_broadcast(x, y))
        if x.op == "ldexp" or y.op == "ldexp":  # powers of two move to the result, so that openings are shared
            (a, i), (b, j) = _strip(x), _strip(y)
            return self.ldexp(self.mul(a, b), i + j)
        return self.node("mul", x, y, shape=_broadcast(x, y))

    def _times_constant(self, x: Node, y: Node) -> Node:
        assert y.value is not None
        shape = _broadcast(x, y)
        flat = y.value.reshape(-1)
        if flat.numel() and bool((flat == flat[0]).all()):
            number = float(flat[0])
            if shape != x.shape:
                x = self.expand(x, shape)
            return self.scale(x, number)
        return self.node("mul_public", x, y, shape=shape)

    def scale(self, x: Node, number: float) -> Node:
        """x times a public number; a power of two only moves the scale."""
        if number == 1.0:
            return x
        mantissa, exponent = math.frexp(number)
        if mantissa == 0.5:
            return self.ldexp(x, exponent - 1)
        if mantissa == -0.5:
            return self.ldexp(self.neg(x), exponent - 1)
        return self.node("mul_public", x, self.constant(number), shape=x.shape)

    def ldexp(self, x: Node, exponent: int) -> Node:
        if exponent == 0:
            return x
        if x.op == "ldexp":
            return self.ldexp(x.args[0], exponent + x.attributes["exponent"])
        return self.node("ldexp", x, shape=x.shape, exponent=exponent)

    def matmul(self, x: Node, y: Node) -> Node:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        shape = (*batch, x.shape[-2], y.shape[-1])
        if y.op == "weight" and (y.owner == "public" or len(y.shape) == 2 or y.shape[:-2] == x.shape[:-2]):
            return self.node("linear", x, y, shape=shape)
        if x.owner == "shared" or y.owner == "shared" or {x.owner, y.owner} == {"client", "server"}:
            return self.node("matmul", x, y, shape=shape)
        raise AssertionError("a product without a secret is folded before it gets here")

    def polynomial(self, x: Node, coefficients: list[float], domain: float = 0.0) -> Node:
        """sum_k coefficients[k] x^k. `domain`: the largest |x| whose result matters (0: all)."""
        while len(coefficients) > 1 and coefficients[-1] == 0.0:
            coefficients = coefficients[:-1]
        if len(coefficients) == 1:
            return self.constant(torch.full(x.shape, coefficients[0], dtype=torch.float64))
        if len(coefficients) == 2:
            return self.add(self.scale(x, coefficients[1]), self.constant(coefficients[0]))
        return self.node("polynomial", x, shape=x.shape, coefficients=coefficients, domain=domain)

    def lookup(
        self, x: Node, table: Tensor, start: float, width: float, beyond: bool = False, power: float = 0.0
    ) -> Node:
        """Of each element the polynomial of its cell: table [cells, degree + 1], a power of two of cells, each `width`
        (a power of two) long, the first from `start`; a row's coefficients are of (x - the cell's start) / width.
        `beyond`: whether x may lie beyond, where the result meets an exact 0. `power`: of x, which the result is times
        a factor (0: a bit), if the table starts at 0."""
        if x.op == "ldexp":
            factor = 2.0 ** -x.attributes["exponent"]
            return self.lookup(x.args[0], table, start * factor, width * factor, beyond, power)
        place = {"start": start, "width": width, "beyond": beyond, "power": power}
        return self.node("lookup", x, self.constant(table), shape=x.shape, **place)

    def levels(self, x: Node, tables: Tensor, widths: list[float], first: int, power: float) -> Node:
        """table_0(x) + [x in the first cells of table 0] (table_1(x) + ...), all of them x^power. How many levels
        depends on the range; two halves of them are found at once."""
        low = (torch.arange(tables.shape[1]) < first).double()[:, None]

        def of(levels: Sequence[int]) -> tuple[Node, Node | None]:
            """What some levels say together, and whether those that follow count."""
            if len(levels) == 1:
                (level,) = levels
                last = level == len(widths) - 1
                bit = None if last else self.lookup(x, low, 0.0, widths[level], beyond=level > 0)
                return self.lookup(x, tables[level], 0.0, widths[level], beyond=level > 0, power=power), bit
            middle = len(levels) // 2
            (upper, bit), (lower, after) = of(levels[:middle]), of(levels[middle:])
            assert bit is not None
            return self.add(upper, self.mul(bit, lower)), None if after is None else self.mul(bit, after)

        self.searching = True
        try:
            return of(range(len(widths)))[0]
        finally:
            self.searching = False

    def reached(self, x: Node, keep: Node | None, start: float, width: float, cells: int) -> Node:
        """Whether any of x [..., n] that `keep` keeps (public, or the client's) lies in a cell or above it:
        [..., cells]. Cells as of `lookup`."""
        args = [x] if keep is None else [x, keep]
        return self.node("reached", *args, shape=(*x.shape[:-1], cells), start=start, width=width, cells=cells)

    def exp(self, x: Node, start: float, width: float, cells: int, depth: float) -> Node:
        """e^x in the last cells, where it is not nearly 0; 0 in all others. Cells as of `lookup`."""
        points = torch.linspace(0, width, EXP_POINTS + 1, dtype=torch.float64)
        rows = min(cells, 1 + math.ceil(depth / width))
        ends = start + width * torch.arange(cells - rows, cells, dtype=torch.float64)
        table = self.constant(torch.exp(ends[:, None] + points))
        last = start + width * (cells - 1)  # beyond, a result must meet an exact 0: a score that a mask hides
        return self.node("exp", x, table, shape=x.shape, start=start, width=width, cells=cells, domain=last)

    def fourier(
        self,
        x: Node,
        cosines: Sequence[float],
        sines: Sequence[float],
        period: float,
        domain: float,
        slope: float = 0.0,
    ) -> Node:
        """sum_n cosines[n] cos(2 pi n x / period) + sines[n] sin(2 pi n x / period) + slope x, for |x| <= domain.
        `period`: as of `whole_periods`; `slope`: 0, or a power of two."""
        if x.op == "ldexp":
            factor = 2.0 ** -x.attributes["exponent"]
            return self.fourier(x.args[0], cosines, sines, period * factor, domain * factor, slope / factor)
        pairs = list(zip_longest(cosines, sines, fillvalue=0.0))
        wave = self.constant(torch.cos(torch.linspace(0, 2 * math.pi, POINTS + 1, dtype=torch.float64)))
        table = self.constant(torch.tensor(pairs, dtype=torch.float64))
        whole, periods = whole_periods(period)
        how = {"whole": whole, "periods": periods, "domain": domain, "slope": slope}
        return self.node("fourier", x, table, wave, shape=x.shape, **how)

    # --- comparisons -------------------------------------------------------------------------------------------------
    def less(self, x: Node, threshold: float, tolerance: float = 0.0) -> Node:
        """1 where x < threshold. `tolerance`: how near to it either answer will do."""
        if x.op == "ldexp":
            factor = 2.0 ** -x.attributes["exponent"]
            return self.less(x.args[0], threshold * factor, tolerance * factor)
        return self.node("less", x, shape=x.shape, threshold=threshold, tolerance=tolerance)

    def sides(self, x: Node, low: float, high: float, tolerance: float = 0.0) -> Node:
        """Of x [..., n], 1 where low <= x < high, and then 1 where x >= high: [..., 2 n]. `tolerance`: as of `less`."""
        if x.op == "ldexp":
            factor = 2.0 ** -x.attributes["exponent"]
            return self.sides(x.args[0], low * factor, high * factor, tolerance * factor)
        shape = (*x.shape[:-1], 2 * x.shape[-1])
        return self.node("sides", x, shape=shape, low=low, high=high, tolerance=tolerance)

    def complement(self, bit: Node) -> Node:
        return self.node("sub", self.constant(1.0), bit, shape=bit.shape)

    def where(self, bit: Node, x: Node, y: Node) -> Node:
        return within(self.add(y, self.mul(bit, self.sub(x, y))), [x, y])

    def relu(self, x: Node) -> Node:
        return within(self.mul(self.complement(self.less(x, 0.0)), x), [x], 0.0)

    def maximum(self, x: Node, dim: int, keepdim: bool) -> Node:
        """A tournament: each level compares one half with the other."""
        self.searching = True
        try:
            x = within(self._largest(x, dim % len(x.shape)), [x])
        finally:
            self.searching = False
        dim %= len(x.shape)
        return x if keepdim else self.reshape(x, (*x.shape[:dim], *x.shape[dim + 1 :]))

    def _largest(self, x: Node, dim: int) -> Node:
        while x.shape[dim] > 1:
            half = x.shape[dim] // 2
            a, b = self.slice(x, dim, 0, half), self.slice(x, dim, half, 2 * half)
            difference = self._of_row(a, b, dim)
            difference.coarse = True
            best = self.sub(a, self.mul(self.less(difference, 0.0), difference))
            rest = self.slice(x, dim, 2 * half, x.shape[dim])
            x = self.concat([best, rest], dim) if rest.shape[dim] else best
        return x

    def argmax(self, x: Node, dim: int, keepdim: bool) -> Node:
        """Position of the first largest: a tournament of neighbours, so that of equal ones the earlier wins."""
        dim %= len(x.shape)
        n = x.shape[dim]
        shape = [n if d == dim else 1 for d in range(len(x.shape))]
        places = where = self.constant(torch.arange(n, dtype=torch.float64).reshape(shape))
        while n > 1:
            pairs = n - n % 2
            lower, joined = None, []
            for value in (x, where):
                left, right = self.slice(value, dim, 0, pairs, 2), self.slice(value, dim, 1, pairs, 2)
                difference = self._of_row(left, right, dim)
                lower = self.less(difference, 0.0) if lower is None else lower
                won = self.sub(left, self.mul(lower, difference))
                if n > pairs:
                    last = self.expand(self.slice(value, dim, pairs, n), (*won.shape[:dim], 1, *won.shape[dim + 1 :]))
                    won = self.concat([won, last], dim)
                joined.append(won)
            x, where = joined
            n = x.shape[dim]
        where = within(self.expand(where, x.shape), [places])
        return where if keepdim else self.reshape(where, (*where.shape[:dim], *where.shape[dim + 1 :]))

    def _of_row(self, a: Node, b: Node, dim: int) -> Node:
        difference = self.sub(a, b)
        difference.row = dim - len(a.shape)
        return difference

    # --- shapes ------------------------------------------------------------------------------------------------------
    def reshape(self, x: Node, shape: tuple[int, ...]) -> Node:
        shape = tuple(torch.empty(x.shape, device="meta").reshape(shape).shape)
        if shape == x.shape:
            return x
        if x.op == "reshape":
            return self.reshape(x.args[0], shape)
        return self.node("reshape", x, shape=shape, sizes=list(shape))

    def permute(self, x: Node, dims: list[int]) -> Node:
        dims = [d % len(x.shape) for d in dims]
        if dims == list(range(len(dims))):
            return x
        return self.node("permute", x, shape=tuple(x.shape[d] for d in dims), dims=dims)

    def transpose(self, x: Node, a: int, b: int) -> Node:
        dims = list(range(len(x.shape)))
        dims[a % len(dims)], dims[b % len(dims)] = dims[b % len(dims)], dims[a % len(dims)]
        return self.permute(x, dims)

    def expand(self, x: Node, shape: tuple[int, ...]) -> Node:
        shape = tuple(torch.empty(x.shape, device="meta").expand(shape).shape)
        return x if shape == x.shape else self.node("expand", x, shape=shape, sizes=list(shape))

    def slice(self, x: Node, dim: int, start: int, stop: int, step: int = 1) -> Node:
        dim %= len(x.shape)
        start, stop, step = slice(start, stop, step).indices(x.shape[dim])
        count = len(range(start, stop, step))
        if count == x.shape[dim] and step == 1:
            return x
        shape = (*x.shape[:dim], count, *x.shape[dim + 1 :])
        if x.op == "constant" and x.value is not None:
            cut = operations()["slice"].compute(x.value, start=start, stop=stop, step=step, dim=dim)
            return self.constant(cut.contiguous())
        if x.op == "concat" and x.attributes["dim"] == dim:
            at = 0
            for part in x.args:
                if at <= start and stop <= at + part.shape[dim]:
                    return self.slice(part, dim, start - at, stop - at, step)
                at += part.shape[dim]
        return self.node("slice", x, shape=shape, dim=dim, start=start, stop=stop, step=step)

    def select(self, x: Node, dim: int, index: int) -> Node:
        dim %= len(x.shape)
        index %= x.shape[dim]
        row = self.slice(x, dim, index, index + 1)
        return self.reshape(row, (*x.shape[:dim], *x.shape[dim + 1 :]))

    def index(self, x: Node, dim: int, indices: list[int]) -> Node:
        dim %= len(x.shape)
        shape = (*x.shape[:dim], len(indices), *x.shape[dim + 1 :])
        return self.node("index", x, shape=shape, dim=dim, indices=[i % x.shape[dim] for i in indices])

    def concat(self, xs: list[Node], dim: int) -> Node:
        if len(xs) == 1:
            return xs[0]
        dim %= len(xs[0].shape)
        shape = (*xs[0].shape[:dim], sum(x.shape[dim] for x in xs), *xs[0].shape[dim + 1 :])
        return self.node("concat", *xs, shape=shape, dim=dim)

    def sum(self, x: Node, dims: list[int], keepdim: bool) -> Node:
        dims = sorted(d % len(x.shape) for d in dims)
        shape = [1 if d in dims else n for d, n in enumerate(x.shape) if keepdim or d not in dims]
        return self.node("sum", x, shape=tuple(shape), dims=dims, keepdim=keepdim)

    def unfold(self, x: Node, kernel: list[int], stride: list[int], padding: list[int]) -> Node:
        empty = operations()["unfold"].compute(torch.empty(x.shape, device="meta"), kernel, stride, padding)
        return self.node("unfold", x, shape=tuple(empty.shape), kernel=kernel, stride=stride, padding=padding)


def order(outputs: list[Node]) -> list[Node]:
    """All nodes that the outputs need, arguments first."""
    seen: dict[int, Node] = {}
    stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(outputs)]
    while stack:
        node, ready = stack.pop()
        if id(node) in seen:
            continue
        if ready:
            seen[id(node)] = node
        else:
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
    return list(seen.values())


def _broadcast(x: Node, y: Node) -> tuple[int, ...]:
    return tuple(torch.broadcast_shapes(x.shape, y.shape))


def _covers(x: Node, y: Node) -> bool:
    return _broadcast(x, y) == x.shape


def _is_zero(x: Node) -> bool:
    return x.op == "constant" and x.value is not None and bool((x.value == 0.0).all())


def _strip(x: Node) -> tuple[Node, int]:
    return (x.args[0], x.attributes["exponent"]) if x.op == "ldexp" else (x, 0)
