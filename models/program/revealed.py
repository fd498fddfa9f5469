"""How fine an answer is: what is revealed of an output, and no more.

Fixed point has far more fractional bits than an answer needs, and each tells a client more about the weights. An answer
keeps `FRACTION` of them. One whose values are all small (a normalised embedding's) keeps as many as make the largest
`SIGNIFICANT` bits long, one with large values no more than a float32 would.
"""

from __future__ import annotations

import math

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
