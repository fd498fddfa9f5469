"""Rules of scales: how the fractional bits of a result follow from its arguments'. Found by scanning this folder.

An operation names its rule (protocols/operations/). To add one, decorate a function of the scaler and the node with
`@scale_rule("name")`: it asks for its arguments' instructions, and emits its own (models/program/scales.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ....protocols.scanning import FunctionRegistry

if TYPE_CHECKING:
    from ...graph.graph import Node
    from ..scales import Scaler

scale_rule: FunctionRegistry[Callable[[Scaler, Node], None]] = FunctionRegistry(__name__)
