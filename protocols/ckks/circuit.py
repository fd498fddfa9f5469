"""A Program as steps on ciphertexts, each with the level it works at; what it reads, rotates by and may cost.

`depth` is the number of rescales that lie behind a ciphertext: an affine map, a product, the scores of attention and
their mixing with values cost one each. A ciphertext is used at the depth of the deepest one that it meets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .diagonals import Block, Product
from .packing import Layout, Packing
from .parameters import MOST_BITS, CkksError, Parameters, TooDeep, most_levels, parameters_for
from .rotation_keys import chain, compose

Array = np.ndarray


@dataclass(frozen=True)
class Operand:
    """A ciphertext with a known vector added, [slots] (None: as it is)."""

    ciphertext: int
    plus: Array | None = None


@dataclass
class CircuitStep:
    """`work`: the depth at which it reads; its results are one deeper. `path`: the module it comes from."""

    results: list[int]
    path: str = ""
    work: int = 0

    def reads(self) -> Iterator[int]:
        raise NotImplementedError

    def rotations(self) -> Iterator[int]:
        """Each one that it makes, as often as it makes it."""
        yield from ()

    def factors(self) -> Iterator[tuple[int, int]]:
        """The two ciphertexts that each result is a product of, or a sum of such products; none of an affine map."""
        yield from ()


@dataclass
class AffineStep(CircuitStep):
    """An affine map: one block for each result."""

    blocks: list[Block] = field(default_factory=list)

    @property
    def slots(self) -> int:
        return len(self.blocks[0].constant)

    @cached_property
    def babies(self) -> dict[int, dict[int, int]]:
        """The chain of baby steps by source."""
        by_source: dict[int, set[int]] = {}
        for _, product in self.products():
            by_source.setdefault(product.source, set()).add(product.baby)
        return {source: chain(steps, self.slots) for source, steps in by_source.items()}

    @cached_property
    def giants(self) -> list[dict[int, int]]:
        """The chain of giant steps by block."""
        return [chain(block.giants, self.slots) for block in self.blocks]

    def products(self) -> Iterator[tuple[tuple[int, int, int], Product]]:
        """Each with its place: block, giant step, position."""
        for index, block in enumerate(self.blocks):
            for giant, products in block.giants.items():
                yield from (((index, giant, position), product) for position, product in enumerate(products))

    def reads(self) -> Iterator[int]:
        yield from (product.source for _, product in self.products())

    def rotations(self) -> Iterator[int]:
        for steps in (*self.babies.values(), *self.giants):
            yield from (to - before for to, before in steps.items())


@dataclass
class MultiplyStep(CircuitStep):
    """Products of ciphertexts, pair by pair; where both are one object, a square."""

    pairs: list[tuple[Operand, Operand]] = field(default_factory=list)

    def reads(self) -> Iterator[int]:
        for factors in self.factors():
            yield from factors

    def factors(self) -> Iterator[tuple[int, int]]:
        yield from ((left.ciphertext, right.ciphertext) for left, right in self.pairs)


@dataclass
class Scored(CircuitStep):
    """What scores read. `sums`: rotations that add up the features of every head."""

    queries: list[Operand] = field(default_factory=list)
    keys: list[Operand] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)

    def reads(self) -> Iterator[int]:
        yield from (operand.ciphertext for operand in (*self.queries, *self.keys))

    def factors(self) -> Iterator[tuple[int, int]]:
        yield from [(self.queries[0].ciphertext, self.keys[0].ciphertext)] * len(self.results)


@dataclass
class Mixed(CircuitStep):
    """What mixing reads."""

    weights: list[Operand] = field(default_factory=list)
    values: list[Operand] = field(default_factory=list)

    def reads(self) -> Iterator[int]:
        yield from (operand.ciphertext for operand in (*self.weights, *self.values))

    def factors(self) -> Iterator[tuple[int, int]]:
        yield from [(self.weights[0].ciphertext, self.values[0].ciphertext)] * len(self.results)


@dataclass
class Attention(CircuitStep):
    """What scores and their mixing share. `tokens`: of a text; `giant`: see packing.baby_steps."""

    tokens: int = 1
    giant: int = 1
    lanes: int = 1

    def offsets(self) -> Iterator[tuple[int, int]]:
        """(giant step, baby step) of each offset, in order."""
        yield from ((r // self.giant * self.giant, r % self.giant) for r in range(self.tokens))

    def babies(self) -> list[int]:
        """One after the other."""
        return [1] * (min(self.giant, self.tokens) - 1)

    def giants(self) -> list[int]:
        """One after the other."""
        return [self.giant] * len(range(self.giant, self.tokens, self.giant))


@dataclass
class Scores(Scored, Attention):
    """Queries times keys, by offset."""

    def rotations(self) -> Iterator[int]:
        for _ in self.keys:
            yield from (-self.tokens, *self.babies())
        for _ in self.queries:
            yield from (-g for g in self.giants())
        for _ in self.results:
            yield from self.sums


@dataclass
class Mix(Mixed, Attention):
    """Weights by offset times values."""

    def rotations(self) -> Iterator[int]:
        for _ in self.values:
            yield from (-self.tokens, *self.babies(), *self.giants())


@dataclass
class OneQuery(CircuitStep):
    """Attention of one query a text. `span`: lanes of a text, a power of two; those beyond its tokens hold 0."""

    span: int = 1

    def doublings(self) -> list[int]:
        """Rotations that reach every lane of a text from its first one."""
        return [1 << k for k in range(self.span.bit_length() - 1)]


@dataclass
class QueryScores(Scored, OneQuery):
    """One query, copied to every lane of its text, times keys."""

    def rotations(self) -> Iterator[int]:
        for _ in self.queries:
            yield from (-steps for steps in self.doublings())
        yield from self.sums


@dataclass
class QueryMix(Mixed, OneQuery):
    """Weights times values, summed over the lanes of a text into its first one."""

    def rotations(self) -> Iterator[int]:
        for _ in self.values:
            yield from self.doublings()


@dataclass(frozen=True)
class Input:
    """A value of the client's in ciphertexts: elements `at` of what the program calls `name` (-1: zero)."""

    name: str
    at: Array
    layout: Layout
    ciphertexts: list[int]


@dataclass(frozen=True)
class Output:
    """A result: `scale` is that of the program's fixed point, in which it is handed on."""

    name: str
    shape: tuple[int, ...]
    layout: Layout
    ciphertexts: list[int]
    scale: int


@dataclass(frozen=True)
class Ends:
    """What a client knows of a circuit: what goes in and comes out, the depth of these ciphertexts, the rotations."""

    inputs: list[Input]
    outputs: list[Output]
    depth: Mapping[int, int]
    rotations: list[int]


@dataclass
class Circuit:
    packing: Packing
    inputs: list[Input] = field(default_factory=list)
    steps: list[CircuitStep] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)  # by ciphertext

    def new(self, count: int) -> list[int]:
        """Numbers for so many ciphertexts, of no depth yet."""
        numbers = list(range(len(self.depth), len(self.depth) + count))
        self.depth += [0] * count
        return numbers

    def add(self, step: CircuitStep) -> None:
        step.work = max((self.depth[number] for number in step.reads()), default=0)
        for number in step.results:
            self.depth[number] = step.work + 1
        self.steps.append(step)

    def settle(self) -> None:
        """Let inputs that are first met late start there: their ciphertexts are smaller."""
        first: dict[int, int] = {}
        for step in self.steps:
            for number in step.reads():
                first[number] = min(first.get(number, step.work), step.work)
        for item in self.inputs:
            for number in item.ciphertexts:
                self.depth[number] = first.get(number, 0)

    @property
    def levels(self) -> int:
        return max((self.depth[number] for output in self.outputs for number in output.ciphertexts), default=0)

    def rotation_keys(self) -> dict[int, tuple[int, ...]]:
        """Every rotation that is made, modulo the slots, without 0 -> the rotations with keys that make it."""
        work: dict[int, float] = {}
        for step in self.steps:
            primes = self.levels + 1 - step.work
            for rotation in step.rotations():
                steps = rotation % self.packing.slots
                work[steps] = work.get(steps, 0.0) + primes * (primes + 1)  # transforms of a key switch
        work.pop(0, None)
        return compose(work, self.packing.slots)

    def rotations(self) -> list[int]:
        """The rotations that Galois keys are needed for."""
        return sorted({key for keys in self.rotation_keys().values() for key in keys})

    def ends(self) -> Ends:
        numbers = [number for end in (*self.inputs, *self.outputs) for number in end.ciphertexts]
        return Ends(self.inputs, self.outputs, {n: self.depth[n] for n in numbers}, self.rotations())

    def by_path(self) -> list[tuple[str, int, int]]:
        """(module, levels used up in it, levels used up after it), in order."""
        rows: list[tuple[str, int, int]] = []
        for step in self.steps:
            before = rows[-1][2] if rows else 0
            after = max(before, step.work + 1)
            used = rows.pop()[1] if rows and rows[-1][0] == step.path else 0
            rows.append((step.path, used + after - before, after))
        return rows


def parameters_of(circuit: Circuit) -> Parameters | None:
    """The parameters at 128 bits for a circuit of so many slots; None if it is too deep for this ring."""
    return parameters_for(2 * circuit.packing.slots, max(1, circuit.levels))


def too_deep(circuit: Circuit) -> TooDeep:
    """Says where the levels end, and by how many the program passes them."""
    degree = max(MOST_BITS)
    most = most_levels(degree)
    where = next((step.path for step in circuit.steps if step.work >= most), "") or "the program's end"
    fitting = [step.path for step in circuit.steps if step.work < most]
    return TooDeep(
        f"{where}: {circuit.levels} levels needed, {most} possible at 128 bits; use fewer layers (fits "
        f"up to {fitting[-1] if fitting else 'nothing'}) or lower degrees"
    )


def check_scores(packing: Packing, heads: int, path: str) -> None:
    """Refuse what the features of a ciphertext do not hold."""
    if 1 << (heads - 1).bit_length() > packing.features:
        raise CkksError(
            f"{path or 'model'}: {heads} heads and {packing.features} features in a ciphertext; compile for fewer "
            "texts or a shorter length"
        )
