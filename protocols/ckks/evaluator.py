"""The server's side: runs a circuit on ciphertexts it cannot read.

Attention over L tokens: score (i, j) belongs to the offset r = j - i modulo L, r = giant step g + baby step b. Queries
move right by g, keys (each text's laid twice in a row) left by b, so one product holds the scores of offset r of all
queries, heads and texts, at lane i + g. Values move like keys; what is mixed moves back by g at the end.

Where one query of each text is all that is asked for, it is copied to all lanes of its text instead, meets every key at
once, and what is mixed is summed over the lanes.

Products are relinearised once for a sum, not once each, and rescaled after. Encoded weights are kept.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tenseal.sealapi as seal  # pyright: ignore[reportMissingImports]

from ..forks import fork, has_other_threads
from .circuit import AffineStep, Circuit, CircuitStep, Mix, MultiplyStep, Operand, QueryMix, QueryScores, Scores
from .diagonals import Product
from .keys import EvaluationKeys, SealContext
from .parameters import CkksError, Parameters


class Evaluator:
    """One circuit with its encoded weights, for any client's keys.

    keep      bytes of encoded weights that are kept for the next request; the others are encoded again each time
    workers   processes over independent ciphertexts
    """

    def __init__(self, circuit: Circuit, parameters: Parameters, keep: int = 4_000_000_000, workers: int = 1) -> None:
        if circuit.levels > parameters.levels:
            raise CkksError(f"the circuit has {circuit.levels} levels, the parameters {parameters.levels}")
        self.circuit, self.ring, self.rotation_keys = circuit, SealContext(parameters), circuit.rotation_keys()
        self.plaintexts: dict[tuple[int, int, int, int, float], Any] = {}
        self.room, self.workers = keep, workers

    def encoded(self, key: tuple[int, int, int, int, float], diagonal: Any, depth: int) -> Any:
        """A diagonal at a scale (the key's last part), encoded; None if it is 0."""
        if key in self.plaintexts:
            return self.plaintexts[key]
        plain = self.ring.encode(diagonal, key[-1], depth)
        plaintext = None if plain.is_zero() else plain
        size = 8 * self.ring.parameters.degree * (self.ring.parameters.levels + 1 - depth)
        if size <= self.room:
            self.room -= size
            self.plaintexts[key] = plaintext
        return plaintext

    def prepare(self) -> None:
        """Encode what is kept of the weights now, and not when the first request comes."""
        scales = {n: self.ring.parameters.scale for item in self.circuit.inputs for n in item.ciphertexts}
        for number, step in enumerate(self.circuit.steps):
            scales.update(dict.fromkeys(step.results, self.ring.parameters.scale))
            for result, (one, other) in zip(step.results, step.factors(), strict=False):
                scales[result] = scales[one] * scales[other] / self.ring.prime(step.work)
            for at, item in step.products() if isinstance(step, AffineStep) else ():
                self.encoded((number, *at, self.weight_scale(scales[item.source], step.work)), item.diagonal, step.work)

    def weight_scale(self, scale: float, depth: int) -> float:
        """A weight's, so that its product with a ciphertext of this scale has the wanted one a level down."""
        return self.ring.parameters.scale * self.ring.prime(depth) / scale

    def run(
        self,
        inputs: Mapping[int, Any],
        keys: EvaluationKeys,
        progress: Callable[[int, int], None] | None = None,
        watch: Callable[[CircuitStep, Mapping[int, Any]], None] | None = None,
    ) -> dict[int, Any]:
        """The answers' ciphertexts by number. `watch` sees each step with its results, and what is still to be read.

        Errors: CkksError for keys that lack a rotation.
        """
        wanted = {key for rotations in self.rotation_keys.values() for key in rotations}
        missing = [r for r in wanted if self.ring.element(r) not in keys.galois]
        if missing:
            raise CkksError(f"the evaluation keys lack {len(missing)} rotations; make keys for this program")
        run = _Evaluation(self, dict(inputs), keys)
        for number, step in enumerate(self.circuit.steps):
            run.step(number, step)
            if watch:
                watch(step, run.held)
            run.drop(number)
            if progress:
                progress(number + 1, len(self.circuit.steps))
        return {number: run.held[number] for output in self.circuit.outputs for number in output.ciphertexts}


class _Evaluation:
    def __init__(self, evaluator: Evaluator, kept: dict[int, Any], keys: EvaluationKeys) -> None:
        self.ring, self.rotation_keys, self.workers = evaluator.ring, evaluator.rotation_keys, evaluator.workers
        self.encoded, self.weight_scale = evaluator.encoded, evaluator.weight_scale
        self.seal = seal.Evaluator(self.ring.context)
        self.held, self.keys = kept, keys
        self.last: dict[int, int] = {}
        for number, step in enumerate(evaluator.circuit.steps):
            self.last.update(dict.fromkeys(step.reads(), number))
        for output in evaluator.circuit.outputs:
            self.last.update(dict.fromkeys(output.ciphertexts, len(evaluator.circuit.steps)))
        self.rotated: dict[tuple[int, int, int], Any] = {}  # of (ciphertext, baby step, depth): readers share them
        self.kinds: dict[type[CircuitStep], Callable[[int, Any], list[Any]]] = {
            AffineStep: self._affine, MultiplyStep: self._multiply, Scores: self._scores, Mix: self._mix,
            QueryScores: self._query_scores, QueryMix: self._query_mix,
        }  # fmt: skip

    def step(self, number: int, step: CircuitStep) -> None:
        for result, value in zip(step.results, self.kinds[type(step)](number, step), strict=True):
            self.held[result] = value

    def drop(self, number: int) -> None:
        """What no step after this one reads."""
        for key in [key for key in self.rotated if self.last[key[0]] <= number]:
            del self.rotated[key]
        for key in [key for key in self.held if self.last.get(key, -1) <= number]:
            del self.held[key]

    # --- ciphertexts -------------------------------------------------------------------------------------------------
    def _at(self, number: int, depth: int) -> Any:
        """The ciphertext at this depth."""
        out = seal.Ciphertext()
        self.seal.mod_switch_to(self.held[number], self.ring.ids[depth], out)
        return out

    def _rotate(self, x: Any, steps: int) -> Any:
        steps %= self.ring.parameters.slots
        for key in self.rotation_keys[steps] if steps else ():
            out = seal.Ciphertext()
            element = self.ring.element(key)
            self.seal.apply_galois(x, element, self.keys.galois[element], out)
            x = out
        return x

    def _baby(self, number: int, steps: int, step: AffineStep) -> Any:
        key = (number, steps, step.work)
        if key not in self.rotated:
            if steps:
                before = step.babies[number][steps]
                self.rotated[key] = self._rotate(self._baby(number, before, step), steps - before)
            else:
                self.rotated[key] = self._at(number, step.work)
        return self.rotated[key]

    def _following(self, x: Any, rotations: Iterable[int]) -> list[Any]:
        """The ciphertext, and each of the rotations applied to the one before."""
        ciphertexts = [x]
        for steps in rotations:
            ciphertexts.append(self._rotate(ciphertexts[-1], steps))
        return ciphertexts

    def _product(self, x: Any, y: Any) -> Any:
        out = seal.Ciphertext()
        if x is y:
            self.seal.square(x, out)
        else:
            self.seal.multiply(x, y, out)
        return out

    def _sum(self, x: Any, y: Any) -> Any:
        """x + y, in place of x; None is 0."""
        if x is None or y is None:
            return y if x is None else x
        self.seal.add_inplace(x, y)
        return x

    def _closed(self, x: Any) -> Any:
        """A sum of products, as a ciphertext of two parts, a level down."""
        self.seal.relinearize_inplace(x, self.keys.relinearise)
        self.seal.rescale_to_next_inplace(x)
        return x

    def _with(self, operand: Operand, depth: int) -> Any:
        x = self._at(operand.ciphertext, depth)
        if operand.plus is not None:
            self.seal.add_plain_inplace(x, self.ring.encode(operand.plus, x.scale, depth))
        return x

    # --- steps -------------------------------------------------------------------------------------------------------
    def _affine(self, number: int, step: AffineStep) -> list[Any]:
        if self.workers > 1:  # what several blocks read is rotated and encoded here, once
            for at, item in step.products():
                self._weighed(number, step, at, item)
        return self._each(range(len(step.blocks)), lambda index: self._block(number, step, index))

    def _weighed(self, number: int, step: AffineStep, at: tuple[int, int, int], item: Product) -> tuple[Any, Any]:
        """A rotated source, and what it is multiplied by."""
        x = self._baby(item.source, item.baby, step)
        return x, self.encoded((number, *at, self.weight_scale(x.scale, step.work)), item.diagonal, step.work)

    def _block(self, number: int, step: AffineStep, index: int) -> Any:
        depth, wanted, block = step.work, self.ring.parameters.scale, step.blocks[index]
        sums: dict[int, Any] = {}
        for giant, products in block.giants.items():
            inner = None
            for position, item in enumerate(products):
                x, plain = self._weighed(number, step, (index, giant, position), item)
                if plain is None:  # SEAL refuses a product with nothing
                    continue
                out = seal.Ciphertext()
                self.seal.multiply_plain(x, plain, out)
                out.scale = wanted * self.ring.prime(depth)
                inner = self._sum(inner, out)
            sums[giant] = inner
        for giant, before in reversed(step.giants[index].items()):
            inner = sums.pop(giant)
            if inner is not None:
                sums[before] = self._sum(sums.get(before), self._rotate(inner, giant - before))
        total = sums.get(0)
        if total is None:
            raise CkksError(f"{step.path or 'model'}: a layer of zeros alone; there is nothing to compute")
        self.seal.rescale_to_next_inplace(total)
        total.scale = wanted
        if block.constant.any():
            self.seal.add_plain_inplace(total, self.ring.encode(block.constant, wanted, depth + 1))
        return total

    def _multiply(self, number: int, step: MultiplyStep) -> list[Any]:
        def product(pair: tuple[Operand, Operand]) -> Any:
            left, right = pair
            x = self._with(left, step.work)
            return self._closed(self._product(x, x if right is left else self._with(right, step.work)))

        return self._each(step.pairs, product)

    def _each(self, parts: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
        return each(parts, work, self._loaded, self.workers)

    def _loaded(self, file: str) -> Any:
        out = seal.Ciphertext()
        out.load(self.ring.context, file)
        return out

    def _twice(self, operands: list[Operand], step: Scores | Mix) -> list[list[Any]]:
        """Every text's tokens twice in a row, rotated by each baby step: by block, by step."""
        rotated = []
        for operand in operands:
            x = self._with(operand, step.work)
            self.seal.add_inplace(x, self._rotate(x, -step.tokens))
            rotated.append(self._following(x, step.babies()))
        return rotated

    def _scores(self, number: int, step: Scores) -> list[Any]:
        keys = self._twice(step.keys, step)
        moved = [
            self._following(self._with(operand, step.work), (-g for g in step.giants())) for operand in step.queries
        ]

        def score(offset: tuple[int, int]) -> Any:
            giant, baby = offset
            total = None
            for query, key in zip(moved, keys, strict=True):
                total = self._sum(total, self._product(query[giant // step.giant], key[baby]))
            return self._summed(self._closed(total), step.sums)

        return self._each(list(step.offsets()), score)

    def _summed(self, x: Any, rotations: Iterable[int]) -> Any:
        """The sum of a ciphertext's rotations by all sums of these."""
        for steps in rotations:
            x = self._added(x, self._rotate(x, steps))
        return x

    def _added(self, x: Any, y: Any) -> Any:
        out = seal.Ciphertext()
        self.seal.add(x, y, out)
        return out

    def _mix(self, number: int, step: Mix) -> list[Any]:
        values = self._twice(step.values, step)
        sums: dict[int, list[Any]] = {}
        for (giant, baby), operand in zip(step.offsets(), step.weights, strict=True):
            weight = self._with(operand, step.work)
            row = sums.setdefault(giant, [None] * len(values))
            for block, value in enumerate(values):
                row[block] = self._sum(row[block], self._product(weight, value[baby]))
        results: list[Any] = [None] * len(values)
        for giant, row in reversed(sums.items()):
            for block, total in enumerate(row):
                results[block] = self._sum(self._closed(total), results[block])
                if giant:
                    results[block] = self._rotate(results[block], step.giant)
        return results

    def _query_scores(self, number: int, step: QueryScores) -> list[Any]:
        total = None
        for query, key in zip(step.queries, step.keys, strict=True):
            copied = self._summed(self._with(query, step.work), (-steps for steps in step.doublings()))
            total = self._sum(total, self._product(copied, self._with(key, step.work)))
        return [self._summed(self._closed(total), step.sums)]

    def _query_mix(self, number: int, step: QueryMix) -> list[Any]:
        (operand,) = step.weights
        weight = self._with(operand, step.work)
        products = (self._closed(self._product(weight, self._with(value, step.work))) for value in step.values)
        return [self._summed(product, step.doublings()) for product in products]


# Ciphertexts that do not depend on one another, by processes that are forked for them: SEAL's classes hold Python's
# lock, so threads would not help.
#
# A child has its parent's keys and encoded weights by copy-on-write, and hands ciphertexts back in files, which tell
# nobody anything. It must be forked from a process of one thread: a lock that another one holds stays locked in a
# child.


Part = TypeVar("Part")


def each(parts: Sequence[Part], work: Callable[[Part], Any], load: Callable[[str], Any], workers: int) -> list[Any]:
    """`work` of every part, in order, by at most so many processes. `load`: a ciphertext from a file.

    Errors: CkksError if a process ends early, or if this one has several threads.
    """
    count = min(workers, len(parts))
    if count < 2:
        return [work(part) for part in parts]
    if has_other_threads():
        raise CkksError("worker processes need a parent of one thread: run the evaluator in a process of its own")
    with tempfile.TemporaryDirectory(prefix="blindformer-ckks-") as folder:
        children = [_forked(parts, work, Path(folder), range(k, len(parts), count)) for k in range(count)]
        statuses = [os.waitpid(child, 0)[1] for child in children]
        if any(statuses):
            raise CkksError(
                "a worker process ended before its ciphertexts were done; is there enough memory? Ask again"
            )
        return [load(str(Path(folder) / str(number))) for number in range(len(parts))]


def _forked(parts: Sequence[Part], work: Callable[[Part], Any], folder: Path, mine: range) -> int:
    parent = os.getpid()
    child = fork()
    if child:
        return child
    status = 1
    try:
        for number in mine:
            if os.getppid() != parent:
                break
            work(parts[number]).save(str(folder / str(number)))
        status = 0
    finally:
        if os.getppid() != parent:  # it was killed: nobody waits for this, and nobody else clears it away
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)
