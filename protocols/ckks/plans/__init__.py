"""What each operation becomes, a form or a step on ciphertexts. Found by scanning this folder.

To add one, decorate a function of the planner, the instruction, its arguments and their scales with `@plan("name")`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING

from ...scanning import modules

if TYPE_CHECKING:
    from ..planner import Planner
    from ..values import PlannedInstruction, PlannedValue

OperationPlan = Callable[["Planner", "PlannedInstruction", "list[PlannedValue]", "list[int]"], "PlannedValue"]
_NAMES = "_blindformer_plans"


def plan(*names: str) -> Callable[[OperationPlan], OperationPlan]:
    def mark(function: OperationPlan) -> OperationPlan:
        setattr(function, _NAMES, names)
        return function

    return mark


@cache
def plans() -> Mapping[str, OperationPlan]:
    """All plans by operation."""
    found: dict[str, OperationPlan] = {}
    for module in modules(__name__):
        for item in vars(module).values():
            for name in getattr(item, _NAMES, ()):
                if found.setdefault(name, item) is not item:
                    raise RuntimeError(f"operation {name}: has two plans; keep one")
    return found
