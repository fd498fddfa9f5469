"""What every protocol looks like to the interpreter, and how protocols are found by name."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import BlindformerError

if TYPE_CHECKING:
    from .rounds import Step


class Engine(Protocol):
    """Runs the instructions of one program at one party, in one phase.

    `execute` is a generator (rounds.py): it yields swaps where it needs the other party and returns the result.
    """

    def execute(
        self, key: str, op: str, shape: tuple[int, ...], width: int, args: list[Any], attributes: dict[str, Any]
    ) -> Step:
        """One instruction. `key`: its name within the program, the same at every party. `args`: what this engine
        returned for its arguments.

        `width`: the low bits of the result that its readers use; the rest need not be right (nor travel).
        """
        ...


@dataclass(frozen=True)
class ProtocolInfo:
    """A protocol module's `PROTOCOL`: its name, its parties, and in one line who learns what.

    exact             whether its integers are those of `clear`, but for the rounding of a rescale
    list_operations   the operations that it has an implementation of, found when they are asked for
    """

    name: str
    parties: str
    security: str
    exact: bool
    list_operations: Callable[[], Collection[str]]

    @property
    def supported_operations(self) -> frozenset[str]:
        return frozenset(self.list_operations())


@cache
def available() -> tuple[str, ...]:
    """Names of the protocols in this folder: modules and packages that define `PROTOCOL`. None is imported for it."""
    package = importlib.import_module(__package__ or "")
    return tuple(sorted(x.name for x in pkgutil.iter_modules(package.__path__) if _is_protocol(x.name)))


def _is_protocol(module: str) -> bool:
    spec = importlib.util.find_spec(f".{module}", __package__)
    return bool(spec and spec.origin and "\nPROTOCOL = " in Path(spec.origin).read_text())


def find(name: str) -> ProtocolInfo:
    """The protocol called `name`; imported only now, so that one protocol's libraries never burden another."""
    if name not in available():
        raise BlindformerError(f"protocol {name}: not known; choose one of {', '.join(available())}")
    return importlib.import_module(f".{name}", __package__).PROTOCOL
