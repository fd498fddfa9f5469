"""Divide by 2^bits, of x modulo 2^ring: |x| < 2^(ring-2)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..ring import nearest, sign_extend, signed
from .operation import SHARED, Attributes, Bits, Operation, whole_bytes


def _rescaled(x: Tensor, bits: int, ring: int = 64, *, chance: Callable[[int, Tensor], Tensor]) -> Tensor:
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
    bits.ring = max(whole_bytes(bits.argument + 1), whole_bytes(attributes["bits"] + max(4, bits.compared)))
    return bits.ring


rescale = Operation(
    "rescale",
    SHARED,
    _rescaled,
    by_chance=True,
    demand=_demand,
    limit=lambda width, attributes: 2.0 ** (attributes.get("ring", width) - 2),
)
