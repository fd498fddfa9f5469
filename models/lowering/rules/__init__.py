"""One rule per ATen operation: how it looks on secrets. Found by importing every file of this folder.

To add one, decorate a function `(lowering, *args, **kwargs)` with `@rule("name")`. Arguments come as the operation's
own, tensors as lowered values: `lowering.as_node` makes a node of any of them. Only calls with a secret argument come
here. Rules take nodes, too, so one may call another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TypeVar

from ....approximations.registry import kinds
from ....protocols.scanning import FunctionRegistry
from ...graph.graph import Node
from ..lowering import Lowering
from ..values import Operand, RuleResult

Rule = Callable[..., RuleResult]
Some = TypeVar("Some", bound=Rule)

_rules: FunctionRegistry[Rule] = FunctionRegistry(__name__)


def rule(*names: str) -> Callable[[Some], Some]:
    """Register a function as the rule of these ATen operations (names without `aten.` and overload)."""

    def register(function: Some) -> Some:
        _rules(*names)(function)
        return function

    return register


def builds(method: Callable[..., Node]) -> Callable[..., Node]:
    """The rule of an operation that is a method of the builder: on x as a node, and on all else as it is."""

    def build(lowering: Lowering, x: Operand, *args: object, **named: object) -> Node:
        return method(lowering.builder, lowering.as_node(x), *args, **named)

    return build


def find(name: str) -> Rule | None:
    """The rule of an operation, if it has one."""
    return _rules.all.get(name)


@cache
def of_kinds() -> dict[str, str]:
    """Operations that an approximation should have answered -> what to do about it."""
    return {op: kind.advice for kind in kinds().values() for op in kind.operations}


_OF_ANSWERS = "return what it is taken of, and take the logarithm of the answer"
_ADVICE: dict[str, str] = dict.fromkeys(("log", "log1p", "log2", "log10"), _OF_ANSWERS)


def advice(name: str, part: bool = False) -> str:
    """What to do about an operation without a rule. `part`: of another one, which no plan answers."""
    known = _ADVICE if part else {**of_kinds(), **_ADVICE}
    return known.get(name) or "rewrite the module without it, or write a rule (models/lowering/rules)"
