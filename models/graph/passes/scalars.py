"""Public factors move to where they cost nothing: into weights, into polynomials, onto the smaller side of a product.

A factor that is no power of two costs fractional bits wherever it meets a large tensor. It commutes with everything
linear, so it floats up through products and sums, and sinks into the weights below (1 / sqrt(d) into the query's) or
after it.

The mean of LayerNorm holds one such factor: with n = o 2^k, o odd, x - sum(x) / n = (o x - sum(x) / 2^k) / o. The
factor 2^m / o that is left goes into the norm's gain and into its variance.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..graph import Builder, Node, derived
from .rewrite import rewrite

SHAPES = {"reshape", "permute", "slice", "expand"}


def fold_scalars(outputs: list[Node]) -> list[Node]:
    return _sink(_float(outputs))


def _float(outputs: list[Node]) -> list[Node]:
    builder = Builder()
    places: dict[int, tuple[Node, float]] = {}

    def change(node: Node) -> Node | None:
        builder.path, builder.searching = node.path, node.search
        if node.op == "sub":
            return _centred(builder, node)
        if node.op == "lookup":
            return _read_elsewhere(builder, node, places)
        factors = [_split(arg) for arg in node.args]
        if all(k == 1.0 for _, k in factors):
            return None
        inner = [x for x, _ in factors]
        if node.op in ("mul", "matmul"):
            return builder.scale(getattr(builder, node.op)(*inner), factors[0][1] * factors[1][1])
        factor = factors[0][1]
        if node.op in SHAPES or node.op == "sum":
            moved = replace(node, args=inner[:1])
            return builder.scale(moved, factor)
        if node.op in ("linear", "mul_private", "mul_public") and node.args[1].op == "weight":
            weight = _scaled(node.args[1], factor)
            return builder.matmul(inner[0], weight) if node.op == "linear" else builder.mul(inner[0], weight)
        if node.op == "polynomial" and sum(c != 0 for c in node.attributes["coefficients"]) == 1:
            power = len(node.attributes["coefficients"]) - 1  # whose coefficient would have few bits
            domain = node.attributes["domain"] / abs(factor)
            alone = builder.polynomial(inner[0], node.attributes["coefficients"], domain)
            return builder.scale(alone, factor**power)
        if node.op == "polynomial":
            coefficients = [c * factor**k for k, c in enumerate(node.attributes["coefficients"])]
            return builder.polynomial(inner[0], coefficients, node.attributes["domain"] / abs(factor))
        if node.op == "less" and factor > 0:
            return builder.less(inner[0], node.attributes["threshold"] / factor, node.attributes["tolerance"] / factor)
        if node.op == "sides" and factor > 0:
            thresholds = (node.attributes[name] / factor for name in ("low", "high", "tolerance"))
            return builder.sides(inner[0], *thresholds)
        if node.op == "ldexp":
            return builder.scale(builder.ldexp(inner[0], node.attributes["exponent"]), factor)
        if _is_scaled(node):
            return builder.scale(inner[0], factor * float(node.args[1].value))  # type: ignore[arg-type]
        return None

    return rewrite(outputs, change)


def _split(node: Node) -> tuple[Node, float]:
    """A node as (inner, factor)."""
    if _is_scaled(node):
        return node.args[0], float(node.args[1].value)  # type: ignore[arg-type]
    return node, 1.0


def _is_scaled(node: Node) -> bool:
    return node.op == "mul_public" and node.args[1].op == "constant" and node.args[1].shape == ()


def _centred(builder: Builder, node: Node) -> Node | None:
    """x - mean(x) as an exact integer combination times 2^m / n."""
    x, mean = node.args
    total, factor = _split(mean)
    if total.op != "sum" or total.args[0] is not x or not total.attributes["keepdim"]:
        return None
    count = math.prod(x.shape[d] for d in total.attributes["dims"])
    if abs(factor * count - 1.0) > 1e-6:
        return None
    twos = (count & -count).bit_length() - 1
    odd = count >> twos
    whole = (
        builder.scale(x, 1.0)
        if odd == 1
        else builder.node("mul_public", x, builder.constant(float(odd)), shape=x.shape)
    )
    difference = builder.sub(whole, builder.ldexp(total, -twos))
    shift = odd.bit_length() - 1
    return builder.scale(builder.ldexp(difference, -shift), 2.0**shift / odd)


def _read_elsewhere(builder: Builder, node: Node, places: dict[int, tuple[Node, float]]) -> Node | None:
    """A power of f x + e, f no power of two, as what the same table says of (f x + e) 2^k / f, near it: so nothing is
    multiplied by f. `places`: what tables are read at instead, by what they were read at, and 2^k / f."""
    x, table = node.args
    if id(x) not in places:
        scaled, other = x.args if x.op == "add" else (x, None)
        inner, factor = _split(scaled)
        if factor <= 0 or (other is not None and (other.op != "constant" or other.shape != ())):
            return None
        exponent = round(math.log2(factor))
        searching, builder.searching = builder.searching, x.search
        place = builder.ldexp(inner, exponent)
        if other is not None:
            place = builder.add(place, builder.constant(float(other.value) * 2.0**exponent / factor))  # type: ignore[arg-type]
        builder.searching = searching
        places[id(x)] = place, 2.0**exponent / factor
    place, stretch = places[id(x)]
    if stretch == 1.0:
        return None
    assert table.value is not None
    return builder.lookup(place, table.value * stretch ** -node.attributes["power"], **node.attributes)


def _sink(outputs: list[Node]) -> list[Node]:
    builder = Builder()
    rescaled: dict[tuple[int, float], Node] = {}
    products: dict[tuple[int, float], Node | None] = {}

    def sunk(inner: Node, factor: float) -> Node | None:
        """The node times the factor, by a smaller product's; once for all that read it so."""
        key = (id(inner), factor)
        if key not in products:
            products[key] = by_factors(inner, factor)
        return products[key]

    def by_factors(inner: Node, factor: float) -> Node | None:
        if inner.op in SHAPES or inner.op == "ldexp":
            below = sunk(inner.args[0], factor)
            if below is None:
                return None
            return (
                builder.ldexp(below, inner.attributes["exponent"])
                if inner.op == "ldexp"
                else replace(inner, args=[below])
            )
        if inner.op == "matmul":
            for position in (0, 1):
                scaled = _into(builder, inner.args[position], factor, rescaled)
                if scaled is not None:
                    return builder.matmul(*(scaled if i == position else arg for i, arg in enumerate(inner.args)))
        if inner.op in ("mul", "matmul") and inner.args[0] is not inner.args[1]:
            sizes = [math.prod(arg.shape) for arg in inner.args]
            if min(sizes) * 8 <= math.prod(inner.shape):
                small = sizes.index(min(sizes))
                args = [builder.scale(arg, factor) if i == small else arg for i, arg in enumerate(inner.args)]
                return getattr(builder, inner.op)(*args)
        return None

    def change(node: Node) -> Node | None:
        inner, factor = _split(node)
        builder.path, builder.searching = node.path, node.search
        return None if factor == 1.0 else sunk(inner, factor)

    return rewrite(outputs, change)


def _into(builder: Builder, node: Node, factor: float, rescaled: dict[tuple[int, float], Node]) -> Node | None:
    """The node times the factor, by scaling the weights it is computed from; None where it is not so computed."""
    key = (id(node), factor)
    if key in rescaled:
        return rescaled[key]
    result: Node | None = None
    if node.op in SHAPES:
        inner = _into(builder, node.args[0], factor, rescaled)
        if inner is not None:
            result = Node(node.op, [inner], node.attributes, node.shape, node.owner, node.path)
    elif node.op == "add" and node.args[1].op == "weight":
        inner = _into(builder, node.args[0], factor, rescaled)
        if inner is not None:
            result = builder.add(inner, _scaled(node.args[1], factor))
    elif node.op == "linear":
        result = builder.matmul(node.args[0], _scaled(node.args[1], factor))
    if result is not None:
        rescaled[key] = result
    return result


def _scaled(weight: Node, factor: float) -> Node:
    assert weight.value is not None
    value = weight.value.double() * factor
    return derived(value, f"{weight.name}*{factor:.6g}", weight)
