"""One rule per ATen operation: how it looks on secrets. Found by scanning this folder.

To add one, decorate a function `(lowering, *args, **kwargs) -> Node` with `@rule("name")`; arguments come as the
operation's own, tensors as lowered values (`lowering.as_node` turns any into a node). Rules see only calls with a
secret argument.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from ....approximations.registry import kinds
from ..problems import LoweringError

Rule = Callable[..., Any]
_RULE = "_blindformer_rule"

_ADVICE = {
    "batch_norm": "fold it into the preceding linear layer before compiling",
    "sort": "sorting secrets is not offered; use amax or a comparison with a constant",
    "topk": "sorting secrets is not offered; take the largest logits at the client",
}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these ATen operations (names without `aten.` and overload)."""

    def mark(function: Rule) -> Rule:
        setattr(function, _RULE, names)
        return function

    return mark


class Rules:
    """All rules of this folder."""

    def __init__(self) -> None:
        self.table: dict[str, Rule] = {}
        for module in pkgutil.iter_modules(importlib.import_module(__name__).__path__):
            found = importlib.import_module(f"{__name__}.{module.name}")
            for item in vars(found).values():
                if getattr(item, "__module__", "") != found.__name__:
                    continue  # what a file imports is a rule where it comes from
                for name in getattr(item, _RULE, ()):
                    if name in self.table:
                        others = self.table[name].__module__.rsplit(".", 1)[-1]
                        raise LoweringError(
                            f"operation {name}: has rules in {others}.py and {module.name}.py; keep one"
                        )
                    self.table[name] = item

    def find(self, name: str) -> Rule | None:
        return self.table.get(name)

    def advice(self, name: str) -> str:
        """What to do about an operation without a rule."""
        advice = {op: kind.advice for kind in kinds().values() for op in kind.operations} | _ADVICE
        if name in advice:
            return advice[name]
        return f"rewrite the module with one of: {', '.join(sorted(self.table))}"
