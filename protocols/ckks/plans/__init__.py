"""What each operation becomes, a form or a step on ciphertexts. Found by scanning this folder.

To add one, decorate a function of the planner, the instruction, its arguments and their scales with `@plan("name")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ...scanning import FunctionRegistry

if TYPE_CHECKING:
    from ..planner import Planner
    from ..values import PlannedInstruction, PlannedValue

OperationPlan = Callable[["Planner", "PlannedInstruction", "list[PlannedValue]", "list[int]"], "PlannedValue"]
plan: FunctionRegistry[OperationPlan] = FunctionRegistry(__name__)
