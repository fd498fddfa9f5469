"""What is found by being there: the modules of a folder, and functions that they register."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import ModuleType
from typing import Generic, TypeVar

F = TypeVar("F")


def modules(package: str) -> Iterator[ModuleType]:
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        yield importlib.import_module(f"{package}.{info.name}")


def import_all(package: str) -> None:
    """Import every module of a folder, for what these register as they are imported."""
    for _ in modules(package):
        pass


class FunctionRegistry(Generic[F]):
    """Functions by name, from the modules of a folder; each is decorated with the registry and its names."""

    def __init__(self, package: str) -> None:
        self._package, self._found = package, {}

    def __call__(self, *names: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            for name in names:
                before = self._found.setdefault(name, function)
                if before is not function:
                    files = f"{before.__module__} and {function.__module__}"
                    raise RuntimeError(f"operation {name}: is defined in {files}; keep one")
            return function

        return register

    @cached_property
    def all(self) -> Mapping[str, F]:
        import_all(self._package)
        return self._found
