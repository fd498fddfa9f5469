"""A circuit on real numbers: what ciphertexts would hold without noise, slot by slot. Needs no keys, no TenSEAL."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from .circuit import (
    AffineStep,
    Attention,
    Circuit,
    CircuitStep,
    Ends,
    Mix,
    MultiplyStep,
    Operand,
    QueryMix,
    QueryScores,
    Scores,
)

Array = np.ndarray


class Exact:
    """Runs a circuit's steps on slots, [slots] by number of the ciphertext, in float64."""

    def __init__(self, circuit: Circuit, values: Mapping[str, Array]) -> None:
        self.circuit, self.held = circuit, packed(circuit, values)
        self.kinds: dict[type[CircuitStep], Callable[[Any], Iterable[Array]]] = {
            AffineStep: self._affine, MultiplyStep: self._multiply, Scores: self._scores, Mix: self._mix,
            QueryScores: self._query_scores, QueryMix: self._query_mix,
        }  # fmt: skip

    def step(self, step: CircuitStep) -> None:
        self.held.update(zip(step.results, self.kinds[type(step)](step), strict=True))

    def run(self) -> dict[str, Array]:
        """Results by name."""
        for step in self.circuit.steps:
            self.step(step)
        return {
            output.name: output.layout.collect(np.array([self.held[n] for n in output.ciphertexts])).reshape(
                output.shape
            )
            for output in self.circuit.outputs
        }

    def _with(self, operand: Operand) -> Array:
        value = self.held[operand.ciphertext]
        return value if operand.plus is None else value + operand.plus

    def _affine(self, step: AffineStep) -> Iterator[Array]:
        for block in step.blocks:
            total = block.constant.copy()
            for giant, products in block.giants.items():
                inner = sum(item.diagonal * _rotated(self.held[item.source], item.baby) for item in products)
                total += _rotated(np.asarray(inner), giant)
            yield total

    def _multiply(self, step: MultiplyStep) -> Iterator[Array]:
        yield from (self._with(left) * self._with(right) for left, right in step.pairs)

    def _twice(self, operand: Operand, step: Attention) -> Array:
        value = self._with(operand)
        return value + _rotated(value, -step.tokens)

    def _scores(self, step: Scores) -> Iterator[Array]:
        keys, queries = [self._twice(key, step) for key in step.keys], [self._with(query) for query in step.queries]
        for giant, baby in step.offsets():
            pairs = zip(queries, keys, strict=True)
            yield _summed(sum(_rotated(q, -giant) * _rotated(k, baby) for q, k in pairs), step.sums)

    def _mix(self, step: Mix) -> Iterator[Array]:
        weights = [self._with(weight) for weight in step.weights]
        for operand in step.values:
            value, total = self._twice(operand, step), np.zeros(self.circuit.packing.slots)
            for (giant, baby), weight in zip(step.offsets(), weights, strict=True):
                total += _rotated(weight * _rotated(value, baby), giant)
            yield total

    def _query_scores(self, step: QueryScores) -> Iterator[Array]:
        copied = [_summed(self._with(query), (-steps for steps in step.doublings())) for query in step.queries]
        yield _summed(sum(q * self._with(k) for q, k in zip(copied, step.keys, strict=True)), step.sums)

    def _query_mix(self, step: QueryMix) -> Iterator[Array]:
        (weight,) = step.weights
        for value in step.values:
            yield _summed(self._with(weight) * self._with(value), step.doublings())


def packed(ends: Ends | Circuit, values: Mapping[str, Array]) -> dict[int, Array]:
    """The client's values, real, by the program's names -> slots by number of the ciphertext."""
    slots = {}
    for item in ends.inputs:
        flat = np.append(np.asarray(values[item.name], dtype=np.float64).reshape(-1), 0.0)  # the last one: padding
        slots.update(zip(item.ciphertexts, item.layout.spread(flat[item.at]), strict=True))
    return slots


def _rotated(x: Array, steps: int) -> Array:
    return np.roll(x, -steps)


def _summed(x: Any, rotations: Iterable[int]) -> Array:
    for steps in rotations:
        x = x + _rotated(x, steps)
    return x
