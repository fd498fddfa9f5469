"""Masks of attention, recognised in scores: minus infinity, which has no fixed point, becomes a factor of 0 or 1.

A mask is added to scores (a very negative number where it hides), or `masked_fill` and `where` put such a number in
their place. Where a softmax asks which scores are kept, the masks are found again and answer by themselves: at the
client, for nothing where they are public, at the server for a parameter of its own. Scores are then those without them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import zip_longest

import torch
from torch import Tensor

from ...approximations.attention import INFINITE, MASKED
from ..graph.graph import Node
from .lowering import Lowering
from .values import Operand, Value, known, owner_of

HIDDEN = -4e3
"""What minus infinity becomes: far below any score, and finite."""
SOURCES = ("client", "weight", "constant")
THROUGH = ("add", "sub", "neg", "ldexp", "mul", "mul_public", "mul_private", "reshape", "permute", "expand", "slice",
           "index", "concat")  # fmt: skip


def bounded(lowering: Lowering, operand: Operand) -> Operand:
    """A mask that somebody has in the clear, with finite numbers; anything else as it is."""
    if not isinstance(operand, Value) or not is_mask(lowering, operand):
        return operand
    infinite = min(float(operand.tensor.min()), lowering.least_number(operand)) <= INFINITE
    return lowering.apply("aten.clamp.default", operand, HIDDEN) if infinite else operand


def finite(operand: Operand) -> Operand:
    """A public number that only a mask would hold, with minus infinity made finite; anything else as it is."""
    if not is_low(operand):
        return operand
    number = torch.as_tensor(known(operand), dtype=torch.float64)
    return operand if float(number.min()) > INFINITE else Value("public", number.clamp(min=HIDDEN))


def is_low(operand: Operand) -> bool:
    """Whether it is a public number, or several, that only a mask would hold."""
    if isinstance(operand, Node) or owner_of(operand) != "public":
        return False
    return bool((torch.as_tensor(known(operand)) <= MASKED).all())


def is_infinite(lowering: Lowering, node: Node) -> bool:
    """Whether a value holds what stands for minus infinity, where a mask hides it."""
    return bool(_apart(lowering, node)[0]) and _reads(node, lambda source: bool((source.tensor == HIDDEN).any()))


def split(lowering: Lowering, node: Node) -> tuple[list[Value], Node]:
    """The masks of scores, each 1 where it keeps, and the scores without them."""
    masks, rest = _apart(lowering, node)
    if rest is None:
        return masks, lowering.builder.constant(torch.zeros(node.shape, dtype=torch.float64))
    if _reads(rest, lambda source: _may_hide(lowering, source)):
        raise lowering.fail(
            "unknown form of attention mask; add it to the scores before the softmax, from the inputs alone"
        )
    return masks, rest


def _apart(lowering: Lowering, node: Node) -> tuple[list[Value], Node | None]:
    """The masks that can be told, and what is left without them: nothing of a mask alone."""
    b = lowering.builder
    if id(node) in lowering.hiding:
        _, keep, scores = lowering.hiding[id(node)]
        masks, rest = _apart(lowering, scores)
        return [keep, *masks], rest
    if node.op in SOURCES:
        value = _of_source(node)
        if not is_mask(lowering, value):
            return [], node
        keep = lowering.apply("aten.gt.Scalar", value, MASKED)
        bias = lowering.apply("aten.clamp.default", lowering.apply("aten.mul.Tensor", value, keep), MASKED)
        return [keep], lowering.as_node(bias) if bool((bias.tensor != 0).any()) else None
    if node.op == "concat":
        return _joined(lowering, node)
    if node.op == "reshape":
        return _reshaped(lowering, node)
    if node.op == "sub":  # such as the largest of a row, which hides none
        masks, rest = _apart(lowering, node.args[0])
        if not masks or _apart(lowering, node.args[1])[0]:
            return [], node
        return masks, b.neg(node.args[1]) if rest is None else b.sub(rest, node.args[1])
    scaled = node.op == "ldexp" or _is_scaled(node)
    if node.op != "add" and not scaled:
        return [], node
    parts = [_apart(lowering, arg) for arg in node.args]
    masks = [mask for own, _ in parts for mask in own]
    left = [rest for _, rest in parts if rest is not None]
    if not masks or (scaled and parts[0][1] is None):
        return masks, None if masks else node
    if node.op == "ldexp":
        return masks, b.ldexp(left[0], node.attributes["exponent"])
    if node.op == "mul_public":
        return masks, b.mul(left[0], left[1])
    return masks, b.add(*left) if len(left) == 2 else left[0] if left else None


def _reshaped(lowering: Lowering, node: Node) -> tuple[list[Value], Node | None]:
    """Scores in another shape, as of heads that count as texts: with them their masks, as narrow as these were."""
    (inner,) = node.args
    masks, rest = _apart(lowering, inner)
    if not masks or inner.shape[-1] != node.shape[-1]:
        return [], node
    backwards = enumerate(zip_longest(inner.shape[::-1], node.shape[::-1]))
    tail = next((number for number, (before, after) in backwards if before != after), len(node.shape))
    reshaped = []
    for factor in (factor for mask in masks for factor in mask.factors or (mask,)):
        shape = factor.tensor.shape
        if math.prod(shape[:-tail]) == 1:  # the same for all that is put together
            sizes = [*[1] * (len(node.shape) - tail), *[1] * (tail - len(shape)), *shape[-tail:]]
        else:
            factor, sizes = lowering.apply("aten.expand.default", factor, list(inner.shape)), list(node.shape)
        reshaped.append(lowering.apply("aten.reshape.default", factor, sizes))
    b = lowering.builder
    return reshaped, None if rest is None else b.reshape(b.expand(rest, inner.shape), node.shape)


def _joined(lowering: Lowering, node: Node) -> tuple[list[Value], Node]:
    """Scores side by side: what hides some of them keeps all others, such as a sink."""
    b, dim, before = lowering.builder, node.attributes["dim"], 0
    if dim != len(node.shape) - 1:
        return [], node
    padded: list[Value] = []
    left: list[Node] = []
    for part in node.args:
        masks, rest = _apart(lowering, part)
        size = part.shape[dim]
        for factor in (factor for mask in masks for factor in mask.factors or (mask,)):
            wide = lowering.apply("aten.expand.default", factor, [*factor.tensor.shape[:-1], size])
            sides = [before, node.shape[dim] - before - size]
            padded.append(lowering.apply("aten.constant_pad_nd.default", wide, sides, 1))
        rest = b.constant(torch.zeros(part.shape, dtype=torch.float64)) if rest is None else rest
        left.append(b.expand(rest, part.shape))
        before += size
    return padded, b.concat(left, dim) if padded else node


def _is_scaled(node: Node) -> bool:
    """Whether it is something times a positive number: what a mask hides, it hides of that."""
    factor = node.args[1].value if node.op == "mul_public" else None
    return factor is not None and not factor.dim() and float(factor) > 0


def _reads(node: Node, test: Callable[[Value], bool]) -> bool:
    """Whether a source that passes a test reaches a value by sums, products and rearrangements."""
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op in SOURCES and node.value is not None and node.value.is_floating_point() and test(_of_source(node)):
            return True
        if node.op in THROUGH and not node.search:  # the largest of a row hides nothing
            todo.extend(node.args[: 1 if node.op == "mul_public" else None])
    return False


def _may_hide(lowering: Lowering, source: Value) -> bool:
    return bool(source.tensor <= MASKED) if source.tensor.shape == () else is_mask(lowering, source)


def _of_source(node: Node) -> Value:
    owner = "client" if node.op == "client" else node.owner
    parameters = frozenset({node.name} if node.owner == "server" else ())  # else what it hides could count as open
    return Value(owner, node.value, node=node, ref=node.name, parameters=parameters, known=owner != node.owner)


def is_mask(lowering: Lowering, value: Value) -> bool:
    """Whether what somebody has in the clear hides scores, or would on other inputs of the client.

    A mask holds minus infinity or the like, or numbers that are either very negative or of a score's size. One that
    happens to hide nothing is all zeros, or is made with a floating-point type's minimum.
    """
    number = value.value
    if value.owner == "shared" or not isinstance(number, Tensor) or not number.is_floating_point() or not number.dim():
        return False
    low, rest = number[number <= MASKED], number[number > MASKED]
    if low.numel():
        return bool((low <= INFINITE).any()) or bool((rest.abs() <= -MASKED / 2).all())
    if value.owner != "client" or number.dim() < 2:
        return False
    least = lowering.least_number(value)
    return least <= INFINITE or (least <= MASKED and not bool(number.any()))
