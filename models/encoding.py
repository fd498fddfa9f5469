"""How many fractional bits a known value is encoded with: weights, public constants, masks."""

from __future__ import annotations

import math

from torch import Tensor

from .graph import Node


def weight_scale(value: Tensor, bits: int) -> int:
    """The largest scale at which the largest weight still fits `bits` bits with its sign."""
    top = float(value.double().abs().max()) if value.numel() else 0.0  # a mask may be of bools
    return min(bits + 8, bits - 1 - math.ceil(math.log2(top))) if top > 0 else bits - 1


def constant_scale(value: Tensor, bits: int) -> int:
    """Fractional bits of a public constant: exact if it has few, else `bits` significant ones."""
    exact = max((fraction_bits(float(v)) for v in value.reshape(-1).unique()), default=0)
    top = float(value.double().abs().max())
    significant = bits - math.ceil(math.log2(top)) if top > 0 else 0
    return min(exact, max(0, significant))


def fraction_bits(number: float) -> int:
    """Bits after the binary point of a float."""
    if number == 0 or number == int(number):
        return 0
    return max(0, math.ceil(math.log2(float(number).as_integer_ratio()[1])))


def is_mask(node: Node) -> bool:
    """Whether the client's value is zeros and ones whatever its input: exact without fractional bits."""
    return node.owner == "client" and bool(node.attributes.get("binary"))
