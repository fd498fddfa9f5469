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


class FunctionRegistry(Generic[F]):
    """Functions by name, from the modules of a folder; each is decorated with the registry and its names."""

    def __init__(self, package: str) -> None:
        self._package, self._found = package, {}

    def __call__(self, *names: str) -> Callable[[F], F]:
        def register(function: F) -> F:
            for name in names:
                if self._found.setdefault(name, function) is not function:
                    raise RuntimeError(f"{self._package}: {name} is defined twice; keep one")
            return function

        return register

    @cached_property
    def all(self) -> Mapping[str, F]:
        for _ in modules(self._package):
            pass  # a module registers its functions as it is imported
        return self._found
