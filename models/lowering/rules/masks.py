"""Masks of attention: minus infinity, which has no fixed point, becomes a factor of 0 or 1.

A mask is added to scores (a very negative number where it hides), or `masked_fill` and `where` put such a number in
their place. Where a softmax asks which scores are kept, the masks are found again and answer by themselves: at the
client, for nothing where they are public, at the server for a parameter of its own. Scores are then those without them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ....approximations.attention import MASKED
from ...graph import Node
from . import rule

HIDDEN = -4e3
"""What minus infinity becomes: far below any score, and finite."""
INFINITE = -1e9
"""Nothing but a mask is as low."""
SOURCES = ("client", "weight", "constant")
THROUGH = ("add", "sub", "neg", "ldexp", "mul", "mul_public", "mul_private", "reshape", "permute", "expand", "slice",
           "index", "concat")  # fmt: skip


def bounded(lowering: Any, value: Any) -> Any:
    """A mask that somebody has in the clear, with finite numbers; anything else as it is."""
    infinite = is_mask(lowering, value) and min(float(value.value.min()), lowering.least_number(value)) <= INFINITE
    return lowering.apply("aten.clamp.default", value, HIDDEN) if infinite else value


def is_infinite(lowering: Any, node: Node) -> bool:
    """Whether a value holds what stands for minus infinity, where a mask hides it."""
    return bool(_apart(lowering, node)[0]) and _reads(node, lambda source: bool((source.value == HIDDEN).any()))


@rule("where")
def where(lowering: Any, condition: Any, x: Any, y: Any) -> Node:
    node = lowering.builder.where(*(lowering.as_node(_finite(v)) for v in (condition, x, y)))
    for scores, other, keeps in ((x, y, "aten.clone.default"), (y, x, "aten.logical_not.default")):
        if _is_low(other) and _is_known(condition):
            lowering.hiding[id(node)] = node, lowering.apply(keeps, condition), lowering.as_node(scores)
    return node


@rule("masked_fill")
def masked_fill(lowering: Any, x: Any, mask: Any, value: Any) -> Node:
    return where(lowering, mask, value, x)


@rule("keeps")
def keeps(lowering: Any, x: Any) -> Any:
    """1 where no mask hides a score."""
    from ..lower import Value

    masks, _ = _split(lowering, lowering.as_node(x))
    if len({mask.owner for mask in masks} - {"public"}) > 1:
        raise lowering.fail(
            "a mask of the client and one of the server hide the same scores; register the server's as a buffer with "
            "persistent=False, which makes it public"
        )
    keys = (*(1 for _ in lowering.as_node(x).shape[1:]), lowering.as_node(x).shape[-1])
    kept = Value("public", torch.ones(keys))
    for number, mask in enumerate(masks):
        kept = lowering.apply("aten.logical_and.default", kept, mask) if number else mask
    if kept.value.shape[-1:] != keys[-1:]:  # the same for all keys: queries that see none
        kept = lowering.apply("aten.expand.default", kept, [*kept.value.shape[:-1], keys[-1]])
    return lowering.apply("aten.to.dtype", kept, torch.float32)


@rule("unmasked")
def unmasked(lowering: Any, x: Any) -> Node:
    """The scores without their masks, 0 where these hide them."""
    masks, scores = _split(lowering, lowering.as_node(x))
    for mask in masks:
        scores = lowering.rules.find("mul")(lowering, scores, mask)
    return scores


def _split(lowering: Any, node: Node) -> tuple[list[Any], Node]:
    """The masks of scores, each 1 where it keeps, and the scores without them."""
    masks, rest = _apart(lowering, node)
    if rest is None:
        return masks, lowering.builder.constant(torch.zeros(node.shape, dtype=torch.float64))
    if _reads(rest, lambda source: _may_hide(lowering, source)):
        raise lowering.fail(
            "a mask reaches the softmax in a way that is not recognised; add it to the scores, or fill them by it, as "
            "the last thing before the softmax, and compute it from the inputs alone"
        )
    return masks, rest


def _apart(lowering: Any, node: Node) -> tuple[list[Any], Node | None]:
    """The masks that can be told, and what is left without them: nothing of a mask alone."""
    b = lowering.builder
    if id(node) in lowering.hiding:
        _, kept, scores = lowering.hiding[id(node)]
        masks, rest = _apart(lowering, scores)
        return [kept, *masks], rest
    if node.op in SOURCES:
        value = _of_source(node)
        if not is_mask(lowering, value):
            return [], node
        kept = lowering.apply("aten.gt.Scalar", value, MASKED)
        bias = lowering.apply("aten.clamp.default", lowering.apply("aten.mul.Tensor", value, kept), MASKED)
        return [kept], lowering.as_node(bias) if bool((bias.value != 0).any()) else None
    scaled = node.op == "ldexp" or _is_scaled(node)
    if node.op != "add" and not scaled:
        return [], node
    found = [_apart(lowering, arg) for arg in node.args]
    masks = [mask for some, _ in found for mask in some]
    left = [rest for _, rest in found if rest is not None]
    if not masks or (scaled and found[0][1] is None):
        return masks, None if masks else node
    if node.op == "ldexp":
        return masks, b.ldexp(left[0], node.attributes["exponent"])
    if node.op == "mul_public":
        return masks, b.mul(left[0], left[1])
    return masks, b.add(*left) if len(left) == 2 else left[0] if left else None


def _is_scaled(node: Node) -> bool:
    """Whether it is something times a positive number: what a mask hides, it hides of that."""
    factor = node.args[1].value if node.op == "mul_public" else None
    return factor is not None and not factor.dim() and float(factor) > 0


def _reads(node: Node, test: Callable[[Node], bool]) -> bool:
    """Whether a source that passes a test reaches a value by sums, products and rearrangements."""
    todo, seen = [node], set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op in SOURCES and node.value is not None and node.value.is_floating_point() and test(node):
            return True
        todo.extend(node.args[: 1 if node.op == "mul_public" else None] if node.op in THROUGH else ())
    return False


def _may_hide(lowering: Any, source: Node) -> bool:
    return _is_low(source.value) if source.shape == () else is_mask(lowering, _of_source(source))


def _of_source(node: Node) -> Any:
    from ..lower import Value

    return Value(node.owner, node.value, node=node, ref=node.name)


def _is_known(value: Any) -> bool:
    """Whether somebody has it in the clear."""
    return getattr(value, "owner", "public") != "shared" and not isinstance(value, Node)


def _is_low(value: Any) -> bool:
    """Whether it is a public number, or several, that only a mask would hold."""
    if getattr(value, "owner", "public") != "public" or isinstance(value, Node):
        return False
    return bool((torch.as_tensor(getattr(value, "value", value)) <= MASKED).all())


def _finite(value: Any) -> Any:
    from ..lower import Value

    number = torch.as_tensor(getattr(value, "value", value), dtype=torch.float64) if _is_low(value) else None
    if number is None or float(number.min()) > INFINITE:
        return value
    return Value("public", number.clamp(min=HIDDEN))


def is_mask(lowering: Any, value: Any) -> bool:
    """Whether what somebody has in the clear hides scores, or would on other inputs of the client.

    A mask holds minus infinity or the like, or numbers that are either very negative or of a score's size. One that
    happens to hide nothing is all zeros, or is made with a floating-point type's minimum.
    """
    number = getattr(value, "value", None)
    if not _is_known(value) or not isinstance(number, Tensor) or not number.is_floating_point() or not number.dim():
        return False
    low, rest = number[number <= MASKED], number[number > MASKED]
    if low.numel():
        return bool((low <= INFINITE).any()) or bool((rest.abs() <= -MASKED / 2).all())
    if value.owner != "client" or number.dim() < 2:
        return False
    least = lowering.least_number(value)
    return least <= INFINITE or (least <= MASKED and not bool(number.any()))
