"""One rule per ATen operation: how it looks on secrets. Found by importing every file of this folder.

To add one, decorate a function `(lowering, *args, **kwargs)` with `@rule("name")`. Arguments come as the operation's
own, tensors as lowered values: `lowering.as_node` makes a node of any of them. Only calls with a secret argument come
here. Rules take nodes, too, so one may call another.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TypeVar

from ....approximations.registry import kinds
from ..problems import LoweringError
from ..values import RuleResult

Rule = Callable[..., RuleResult]
Some = TypeVar("Some", bound=Rule)

_found: dict[str, Rule] = {}
_advice: dict[str, str] = {}


def rule(*names: str) -> Callable[[Some], Some]:
    """Register a function as the rule of these ATen operations (names without `aten.` and overload)."""

    def register(function: Some) -> Some:
        for name in names:
            if name in _found:
                files = " and ".join(f"{f.__module__.rsplit('.', 1)[-1]}.py" for f in (_found[name], function))
                raise LoweringError(f"operation {name}: has rules in {files}; keep one")
            _found[name] = function
        return function

    return register


def advise(*names: str, advice: str) -> None:
    """Say what to do about operations that have no rule."""
    _advice.update(dict.fromkeys(names, advice))


@cache
def _scan() -> None:
    for module in pkgutil.iter_modules(__path__):
        import_module(f".{module.name}", __name__)


def find(name: str) -> Rule | None:
    """The rule of an operation, if it has one."""
    _scan()
    return _found.get(name)


def advice(name: str) -> str:
    """What to do about an operation without a rule."""
    _scan()
    of_kinds = {op: kind.advice for kind in kinds().values() for op in kind.operations}
    return (of_kinds | _advice).get(name) or f"rewrite the module with one of: {', '.join(sorted(_found))}"
