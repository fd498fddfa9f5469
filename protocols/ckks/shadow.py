"""A circuit on plain vectors of slots: what each ciphertext would hold without noise (evaluator.py, step by step)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .circuit import Affine, Circuit, Mix, Multiply, Operand, Scores, Step

Array = np.ndarray
Held = dict[int, Array]


def shadow(circuit: Circuit, inputs: Mapping[int, Array]) -> Held:
    """Every ciphertext's slots by number."""
    held: Held = dict(inputs)
    kinds: dict[type[Step], Callable[[Any, Held], list[Array]]] = {
        Affine: _affine, Multiply: _multiply, Scores: _scores, Mix: _mix,
    }  # fmt: skip
    for step in circuit.steps:
        held.update(zip(step.results, kinds[type(step)](step, held), strict=True))
    return held


def _left(x: Array, steps: int) -> Array:
    return np.roll(x, -steps)


def _with(operand: Operand, held: Held) -> Array:
    x = held[operand.ciphertext]
    return x if operand.plus is None else x + operand.plus


def _affine(step: Affine, held: Held) -> list[Array]:
    results = []
    for block in step.blocks:
        total = block.constant.copy()
        for giant, products in block.giants.items():
            rows = [item.diagonal * _left(held[item.source], item.baby) for item in products]
            total += _left(np.sum(rows, axis=0), giant)
        results.append(total)
    return results


def _multiply(step: Multiply, held: Held) -> list[Array]:
    return [_with(left, held) * _with(right, held) for left, right in step.pairs]


def _twice(operands: list[Operand], tokens: int, held: Held) -> list[Array]:
    plain = [_with(operand, held) for operand in operands]
    return [x + _left(x, -tokens) for x in plain]


def _scores(step: Scores, held: Held) -> list[Array]:
    keys, queries = _twice(step.keys, step.tokens, held), [_with(operand, held) for operand in step.queries]
    results = []
    for giant, baby in step.offsets():
        out = np.sum([_left(q, -giant) * _left(k, baby) for q, k in zip(queries, keys, strict=True)], axis=0)
        for steps in step.sums:
            out = out + _left(out, steps)
        results.append(out)
    return results


def _mix(step: Mix, held: Held) -> list[Array]:
    values = _twice(step.values, step.tokens, held)
    results = [np.zeros_like(value) for value in values]
    for (giant, baby), operand in zip(step.offsets(), step.weights, strict=True):
        weight = _with(operand, held)
        for block, value in enumerate(values):
            results[block] += _left(weight * _left(value, baby), giant)
    return results
