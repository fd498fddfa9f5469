"""Fourier series: a result has the table's bits and those of the dealer's numbers, which large coefficients magnify."""

from __future__ import annotations

import math

from ....protocols.operations.fourier import WAVE
from ...graph.graph import Node
from ..scales import Scaler, scale_rule


@scale_rule("fourier")
def fourier(at: Scaler, node: Node) -> None:
    x, table, wave = node.args
    assert table.value is not None
    number, scale = at.lowered(x)
    rows = at.precision.fraction + 1  # each term is rounded twice
    fraction = at.precision.fraction - 2 + math.ceil(math.log2(float(table.value.abs().sum())))
    bits = scale + round(math.log2(node.attributes["period"]))
    at.emit(
        node,
        [number, at.source(table, rows), at.source(wave, WAVE)],
        rows + fraction,
        bits=bits,
        fraction=fraction,
        bounded=True,
    )
