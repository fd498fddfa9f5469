"""How many fractional bits a known value is encoded with: weights, public constants, masks."""

from __future__ import annotations

import math
from bisect import bisect_left

import torch
from torch import Tensor

from ..graph.graph import Node

_FLOAT32 = 2.0**-20  # relative: what float32 leaves of a quantised weight after a product with a gain and a quotient

_SAMPLE, _PIECE = 4096, 1 << 16  # entries


def weight_scale(value: Tensor, bits: int) -> int:
    """Fractional bits of a weight: those it has, if it is quantised; else as many as let the largest fit `bits` bits
    with its sign. How many a single number has would say much of it, and all of 1, to whoever has the Program."""
    top = max(abs(float(end)) for end in value.aminmax()) if value.numel() else 0.0
    if top == 0:
        return bits - 1
    full = min(bits + 8, bits - 1 - math.ceil(math.log2(top)))
    return full if value.numel() == 1 else min(full, quantised_scale(value, full))


def quantised_scale(value: Tensor, most: int) -> int:
    """The least scale at which all entries are whole numbers (but for float32's rounding), or `most`."""
    entries, least = value.reshape(-1), -64
    some = entries[:_SAMPLE]
    # Whole at a scale means whole at every larger one: bisect for a few entries, and go on with those they do not speak
    # for. Most weights are large, and many parts of a model share one.
    while least < most and len(some):
        if len(_not_whole(some, least)):
            least = bisect_left(range(least + 1, most), 0, key=lambda at: -len(_not_whole(some, at))) + least + 1
        entries = _not_whole(entries, least) if least < most else some[:0]
        some = entries[:_SAMPLE]
    return least


def _not_whole(value: Tensor, scale: int) -> Tensor:
    pieces = []
    for piece in value.split(_PIECE):
        x = piece.double() * 2.0**scale
        pieces.append(piece[~((x - torch.round(x)).abs() <= _FLOAT32 * x.abs())])  # of a NaN, too
    return torch.cat(pieces)


def constant_scale(value: Tensor, bits: int) -> int:
    """Fractional bits of a public constant: exact if it has few, else `bits` significant ones."""
    exact = max((fraction_bits(float(v)) for v in value.reshape(-1).unique()), default=0)
    top = float(value.double().abs().max())
    significant = bits - math.ceil(math.log2(top)) if top > 0 else 0
    return min(exact, max(0, significant))


def fraction_bits(number: float) -> int:
    """Bits after the binary point of a float."""
    return max(0, least_scale(number)) if number else 0


def least_scale(number: float) -> int:
    """The least scale at which a float is whole: below 0 of a multiple of a power of two; of 0 any would do."""
    numerator, denominator = float(number).as_integer_ratio()
    return denominator.bit_length() - (numerator & -numerator).bit_length() if numerator else -64


def is_mask(node: Node) -> bool:
    """Whether what the client, or all parties, compute in each run is zeros and ones: exact without fractional bits."""
    return node.op == "client" and bool(node.attributes.get("binary"))


# How fine an answer is: what is revealed of an output, and no more.
#
# Fixed point has far more fractional bits than an answer needs, and each tells a client more about the weights. An
# answer keeps `FRACTION` of them. One whose values are all small (a normalised embedding's) keeps as many as make the
# largest `SIGNIFICANT` bits long, one with large values no more than a float32 would.

FRACTION = 12
SIGNIFICANT = 13
FLOAT32 = 24  # significant bits


def answer_bits(largest: float) -> int:
    """Fractional bits f of an answer whose magnitudes calibration saw up to `largest`.

    An answer is the output rounded to 2^-f, up or down by chance and right on average: its error is below 2^-f, and
    that is at most 2^-12 or 2^-12 of the largest magnitude.
    """
    size = math.ceil(math.log2(largest)) if largest > 0 else 0  # bits before the binary point
    return min(max(FRACTION, SIGNIFICANT - size), FLOAT32 - size)
