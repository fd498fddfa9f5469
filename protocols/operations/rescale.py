"""Divide by 2^bits, of x modulo 2^ring: |x| < 2^(ring-2), where more than ring - bits bits of the result are read.
With `early` the result is opened as soon as it is there, ahead of a reader that opens it: by 0 bits that is all."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..ring import nearest, sign_extend, signed
from ..wire import wire_bytes
from .operation import SHARED, Attributes, Bits, Operation, whole_bytes


def _rescaled(
    x: Tensor, bits: int, ring: int = 64, early: bool = False, *, chance: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """Rounded to nearest, where parties round by chance.

    Among parties, an x out of range (|x| >= 2^(ring-2)) loses 2^ring or not, by the mask that it meets
    (protocols/beaver/rescale.py): with y = x + 2^(ring-2) modulo 2^ring, which is at least 2^(ring-1) then, it does
    so with a probability of y / 2^(ring-1) - 1.
    """
    if not bits:
        return x
    x = sign_extend(x, ring)
    result = nearest(x, bits)
    edge = 1 << (ring - 2)
    out = (x >= edge) | (x < -edge)
    if not x.is_meta and bool(out.any()):
        past, top = (x - edge) & (2 * edge - 1), 2 * edge - 1  # y - 2^(ring-1), below 2^(ring-1)
        lost = chance(top, x) > top - past
        result += signed(1 << (ring - bits)) * (out * ((x < 0).long() - lost.long()))
    return result


def _demand(bits: Bits, attributes: Attributes) -> int:
    """Of the ring what takes no message, if there is as much and it is not costly; else what an opening carries whole,
    or (of bits that are free) what costs the opening and its corrections the fewest bytes."""
    by = attributes["bits"]
    bits.ring = bits.width + by
    if by and bits.ring > (bits.argument if bits.costly else 64):
        least = max(bits.argument + 1, by + max(4, bits.compared))
        bits.ring = min(by + whole_bytes(least - by), whole_bytes(least))
        if bits.free:
            rings = range(min(least, 64), 65)
            bits.ring = min(rings, key=lambda ring: wire_bytes(ring - by) + wire_bytes(bits.width - ring + by))
    bits.early = bits.opened and bits.width <= bits.ring - by
    return bits.ring


def _problem(attributes: Attributes) -> str:
    if type(attributes.get("early", False)) is not bool:
        return "a rescale that is early by something else than a yes or no"
    return "" if attributes.get("ring", 64) - attributes["bits"] >= 2 else "a rescale that leaves too few bits to open"


def _limit(width: int, attributes: Attributes) -> float:
    ring = attributes.get("ring", 64)
    return math.inf if width <= ring - attributes["bits"] else 2.0 ** (ring - 2)


rescale = Operation("rescale", SHARED, _rescaled, by_chance=True, check=_problem, demand=_demand, limit=_limit)
