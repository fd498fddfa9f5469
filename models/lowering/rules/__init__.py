"""One rule per ATen operation: how it looks on secrets. Found by importing every file of this folder.

To add one, decorate a function `(lowering, *args, **kwargs)` with `@rule("name")`. Arguments come as the operation's
own, tensors as lowered values: `lowering.as_node` makes a node of any of them. Only calls with a secret argument come
here. Rules take nodes, too, so one may call another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ....approximations.registry import kinds
from ....protocols.scanning import FunctionRegistry
from ..values import RuleResult

Rule = Callable[..., RuleResult]
Some = TypeVar("Some", bound=Rule)

_rules: FunctionRegistry[Rule] = FunctionRegistry(__name__)
_advice: dict[str, str] = {}


def rule(*names: str) -> Callable[[Some], Some]:
    """Register a function as the rule of these ATen operations (names without `aten.` and overload)."""

    def register(function: Some) -> Some:
        _rules(*names)(function)
        return function

    return register


def advise(*names: str, advice: str) -> None:
    """Say what to do about operations that have no rule."""
    _advice.update(dict.fromkeys(names, advice))


def find(name: str) -> Rule | None:
    """The rule of an operation, if it has one."""
    return _rules.all.get(name)


def advice(name: str) -> str:
    """What to do about an operation without a rule."""
    known = sorted(_rules.all)
    of_kinds = {op: kind.advice for kind in kinds().values() for op in kind.operations}
    return (of_kinds | _advice).get(name) or f"rewrite the module with one of: {', '.join(known)}"
