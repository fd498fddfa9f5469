"""What the planner holds of a program while it walks it: an element's place in a form, or in ciphertexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..operations import operations
from . import affine
from .affine import AffineForm
from .circuit import Operand
from .packing import Layout

Array = np.ndarray


class PlannedInstruction(Protocol):
    """What the planner reads of a program's instruction (models/program/program.py)."""

    @property
    def op(self) -> str: ...
    @property
    def args(self) -> tuple[int, ...]: ...
    @property
    def attributes(self) -> dict[str, Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def scale(self) -> int: ...
    @property
    def path(self) -> str: ...


@dataclass(frozen=True)
class PlannedValue:
    """A value of the program: elements `at` of a form, or of what the client calls `client`, times a factor."""

    at: Array
    form: AffineForm | None = None
    client: str = ""
    factor: float = 1.0

    def viewed(self, at: Array) -> PlannedValue:
        return PlannedValue(at, self.form, self.client, self.factor)


@dataclass(frozen=True)
class Base:
    """A value in ciphertexts. `clean`: zero in all slots where no element lies. `tokens`: of scores; else 0."""

    layout: Layout
    ciphertexts: list[int]
    clean: bool
    tokens: int = 0


@dataclass
class FactoredValue:
    """What a product reads: ciphertexts with what is added to them, and the factor that is left for its readers."""

    base: Base
    operands: list[Operand]
    factor: float = 1.0


def element_numbers(shape: tuple[int, ...]) -> Array:
    return np.arange(int(np.prod(shape))).reshape(shape)


def is_rows(at: Array, shape: tuple[int, ...]) -> bool:
    """Whether elements `at` [texts, some, features] of a value [texts, tokens, features] are some of its rows."""
    if len(shape) != 3 or at.ndim != 3 or at.shape[-1] != shape[-1] or (at == affine.ZERO).any():
        return False
    return bool((at % shape[-1] == np.arange(shape[-1])).all())


def value_of(form: AffineForm, shape: tuple[int, ...]) -> PlannedValue:
    return PlannedValue(element_numbers(shape), form)


def viewed(op: str, value: PlannedValue, attributes: dict[str, Any]) -> PlannedValue:
    moved: Tensor = operations()[op].compute(torch.from_numpy(np.ascontiguousarray(value.at) + 1), **attributes)
    return value.viewed(moved.numpy() - 1)  # what padding adds is number 0, and then none


def scaled(value: PlannedValue, power: int, factor: float = 1.0) -> PlannedValue:
    return PlannedValue(value.at, value.form, value.client, value.factor * factor * 2.0**power)


def equal(x: PlannedValue, y: PlannedValue) -> bool:
    """Whether two values are one: the same elements of equal forms."""
    if x.client or y.client or x.form is None or y.form is None or x.factor != y.factor:
        return False
    if not np.array_equal(x.at, y.at) or not np.array_equal(x.form.constant, y.form.constant):
        return False
    pairs = zip(x.form.terms, y.form.terms, strict=False)
    return len(x.form.terms) == len(y.form.terms) and all(
        a is b or (a.like(b) and np.array_equal(a.kind, b.kind) and np.array_equal(a.matrix, b.matrix))
        for a, b in pairs
    )
