"""Rules of scales: how the fractional bits of a result follow from its arguments'. Found by scanning this folder.

An operation names its rule (protocols/operations/). To add one, decorate a function of the scaler and the node with
`@scale_rule("name")`: it asks for its arguments' instructions, emits its own and sets the node's (models/scales.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from ...protocols.scanning import modules

if TYPE_CHECKING:
    from ..graph import Node
    from ..scales import Scaler

ScaleRule = Callable[["Scaler", "Node"], None]
_NAME = "_blindformer_scale_rule"


def scale_rule(name: str) -> Callable[[ScaleRule], ScaleRule]:
    def mark(function: ScaleRule) -> ScaleRule:
        setattr(function, _NAME, name)
        return function

    return mark


@cache
def scale_rules() -> Mapping[str, ScaleRule]:
    """All rules by name."""
    found: dict[str, ScaleRule] = {}
    for module in modules(__name__):
        for item in vars(module).values():
            name = getattr(item, _NAME, None)
            if name and found.setdefault(name, item) is not item:
                raise RuntimeError(f"scales by rule {name}: the rule is defined twice; keep one")
    return found
