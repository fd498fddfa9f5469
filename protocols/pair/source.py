"""Corrections without a dealer: what each party walks a program with, and how both make what follows from masks.

In the dealt protocol the client holds key streams alone, and the server's share of a derived value is the value less
the client's stream. So the pair makes the same corrections at the server: seeds, stores and the online phase stay.

Masks      uniform values are shares already, each party's own key stream. A weight has no mask: B = W, which the server
           knows, and D = 0.
Walks      two, by the same `correlate` as everywhere. What reads uniform values alone, and is read by others (`FIRST`:
           parts of a rescale's mask, bits as numbers), is made after the first walk; all else after the second, when
           the server has its shares of these.
Batches    a walk stops where BATCH_ELEMENTS values wait, and both parties make these: so memory is bounded, whatever
           the program. The values of a batch are made side by side: their messages share rounds, and crossed products
           of a round go to encryption together (transfers.py). The longest chain is the carries of a mask, a round a
           bit.
Who learns what   steps.py says it of each message. All that both see besides are the program's shapes.

A recipe without an evaluation ends the first walk where it comes: CorrelationError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from ..beaver.gates import BitNumbers
from ..beaver.lookup import CellPoint
from ..beaver.point_function import PointGroup
from ..beaver.rescale import BitsAbove, TopBit
from ..beaver.source import Corrections, PartyMasks, Recipe, Shape, Source, aes_keys_of, roots_of
from ..channel import Frames
from ..ring import sign_extend
from ..rounds import Graph, Swap, Wire, over_channel, run_rounds
from ..streams import Stream
from ..wire import elements
from .evaluations import check, evaluate
from .key_generation import KeyWords
from .steps import Derivation, Pair
from .transfers import Crossed, TwoPartyProducts

FIRST = (BitsAbove, TopBit, BitNumbers)  # recipes of uniform values, whose values others read
BATCH_ELEMENTS = 1 << 20


class PairSource(PartyMasks):
    """A party's side of one walk: its shares, and the values that wait, by their number among all derived ones.

    `made`: at the server, the corrections of earlier walks by number. In the last walk all are written in order, each
    batch with what is before it.
    """

    narrow, evaluates = False, True

    def __init__(
        self,
        pair: Pair,
        stream: Stream,
        wire: Wire,
        last: bool,
        made: dict[int, Tensor],
        corrections: Corrections | None,
    ) -> None:
        self.role = "server" if pair.leader else "client"
        self.stream, self.device = stream, stream.device
        self.rounds = 0
        self._pair, self._wire, self._last, self._made, self._corrections = pair, wire, last, made, corrections
        self._widths: list[int] = []  # of all derived values
        self._waiting: dict[int, Derivation] = {}
        self._elements = self._written = 0
        self._unknown = torch.zeros((), dtype=torch.int64, device=stream.device)

    def uniform(self, label: str, shape: Shape, width: int = 8) -> Tensor:
        return self.stream.integers(label, shape, width)

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.drawn_if(owner == self.role, label, shape)

    def derived(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        check(recipe)
        number, first = len(self._widths), isinstance(recipe, FIRST)
        self._widths.append(width)
        if first and self._last and self.role == "server":
            return self._made[number].clone()
        share = None
        if self.role == "client" and (first or self._last):
            share = self.stream.integers(label, shape, width)
            if first and self._last:
                return share
        if first != self._last:
            self._wait(number, Derivation(recipe, shape, width, share))
        # Nobody reads it in this walk.
        return torch.zeros(shape, dtype=torch.int64, device=self.device) if first else self._unknown.expand(shape)

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.stream.integers(label, shape)

    def derived_bits(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        return self.derived(label, shape, recipe, width)

    def points(self, group: PointGroup) -> None:
        number, count = len(self._widths), group.runs * group.count
        self._widths.append(8)
        if not self._last:
            return
        keys = aes_keys_of(self.stream, group) if self.role == "server" else None
        points = tuple(cast(CellPoint, recipe) for recipe in group.recipes)
        recipe = KeyWords(group.layout, points, group.runs, roots_of(self.stream, group), keys)
        self._wait(number, Derivation(recipe, (count, group.layout.words), 8))

    def _wait(self, number: int, job: Derivation) -> None:
        self._waiting[number] = job
        self._elements += elements(job.shape)
        if self._elements >= BATCH_ELEMENTS:
            self.make()

    def make(self) -> None:
        """With the other party, what waits."""
        numbers, jobs = list(self._waiting), list(self._waiting.values())

        def done(task: int, correction: Any) -> None:
            if correction is not None:
                number = numbers[task]
                self._made[number] = sign_extend(correction, 8 * self._widths[number])

        graph = Graph([()] * len(jobs))
        self.rounds += run_rounds(graph, lambda task: evaluate(self._pair, jobs[task]), done, self._wire)
        self._pair.kept.clear()  # before the masks go, whose places name what is kept
        self._waiting.clear()
        self._elements = 0
        if self._last and self._pair.leader:
            self._write()

    def _write(self) -> None:
        for number in range(self._written, len(self._widths)):
            correction = self._made.pop(number)
            if self._corrections is not None:
                self._corrections.write(correction, self._widths[number])
        self._written = len(self._widths)


@dataclass(frozen=True)
class PairWire:
    """Swaps over the channel, and crossed products of the same round by encryption."""

    swaps: Wire
    products: TwoPartyProducts

    @classmethod
    def over(cls, channel: Frames, products: TwoPartyProducts) -> PairWire:
        return cls(over_channel(channel), products)

    def __call__(self, parts: list[Swap]) -> list[Tensor | None]:
        crossed = [part for part in parts if isinstance(part, Crossed)]
        plain = [part for part in parts if not isinstance(part, Crossed)]
        shares = iter(self.products.cross(crossed) if crossed else ())
        received = iter(self.swaps(plain) if plain else ())
        return [next(shares) if isinstance(part, Crossed) else next(received) for part in parts]


def make_corrections(
    pair: Pair, stream: Stream, walk: Callable[[Source], object], wire: Wire, corrections: Corrections | None = None
) -> int:
    """Make a program's corrections, and write them at the server; returns the rounds.

    `stream`: this party's masks, which nothing was made of before. `walk`: runs the program's offline phase, from its
    beginning, with a source; the server's weights are those in the clear, the client's masked ones are zeros. Errors:
    `CorrelationError`, also of a stream that was used, and of all calls after one that failed.
    """
    made: dict[int, Tensor] = {}
    rounds = 0
    with pair.using(stream):
        for last in (False, True):
            source = PairSource(pair, stream, wire, last, made, corrections)
            walk(source)
            source.make()
            rounds += source.rounds
    if corrections is not None:
        corrections.finish()
    return rounds
