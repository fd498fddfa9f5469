"""The result: x / 2^bits, of x modulo 2^ring, to the client alone or to an owner who takes no part."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..ring import nearest
from . import RECIPIENTS
from .operation import RESULT, Attributes, Bits, Operation, whole_bytes

RevealedRows = tuple[int, int]  # of a result [1, rows, ...], the first that is revealed and the one after the last


def rows_of(result: Tensor, rows: RevealedRows | None) -> Tensor:
    """Those that are revealed; None: all."""
    return result if rows is None else result[:, slice(*rows)]


def shape_of_rows(shape: Sequence[int], rows: RevealedRows | None) -> tuple[int, ...]:
    return tuple(shape) if rows is None else (shape[0], rows[1] - rows[0], *shape[2:])


def _revealed(x: Tensor, to: str, bits: int = 0, ring: int = 64) -> Tensor:
    return nearest(x, bits)


def _check(attributes: Attributes) -> str:
    return "" if attributes.get("to") in RECIPIENTS else "tells a result to others than the data's owner"


def _demand(bits: Bits, attributes: Attributes) -> int:
    bits.width = whole_bytes(bits.result)
    if not attributes.get("bits"):
        return bits.width
    bits.ring = min(64, bits.width + attributes["bits"])
    bits.width = bits.ring - attributes["bits"]  # no more: the bits above would tell of the masks (beaver/reveal.py)
    return bits.ring


reveal = Operation(
    "reveal",
    RESULT,
    _revealed,
    check=_check,
    demand=_demand,
    limit=lambda width, attributes: 2.0 ** (attributes.get("ring", width) - 1),
)
