"""Corrections without a dealer: what each party walks a program with, and how both make what follows from masks.

In the dealt protocol the client holds key streams alone, and the server's share of a derived value is the value less
the client's stream. So the pair makes the same corrections at the server: seeds, stores and the online phase stay.

Masks      uniform values are shares already, each party's own key stream. A weight has no mask: B = W, which the server
           knows, and D = 0.
Walks      two, by the same `correlate` as everywhere. What reads uniform values alone, and is read by others (`FIRST`:
           parts of a rescale's mask, bits as numbers), is made after the first walk; all else after the second, when
           the server has its shares of these.
Rounds     all values of a walk are made side by side: their messages share rounds, and crossed products of a round go
           to encryption together (transfers.py). The longest chain is the carries of a mask, a round a bit.
Who learns what   steps.py says it of each message. All that both see besides are the program's shapes.

Recipes without an evaluation end the first walk: CorrelationError, before anything is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from .evaluations import check, evaluate
from .key_generation import KeyWords
from .steps import Derivation, Pair
from .transfers import Crossed, TwoPartyProducts

FIRST = (BitsAbove, TopBit, BitNumbers)  # recipes of uniform values, whose values others read
WALKS = 2


class PairSource(PartyMasks):
    """A party's side of one walk: its shares, and the jobs of this walk by their number among all derived values.

    `derived_before`: the server's shares that earlier walks have made, by number.
    """

    narrow, evaluates = False, True

    def __init__(self, leader: bool, stream: Stream, last: bool, derived_before: dict[int, Tensor]) -> None:
        self.role = "server" if leader else "client"
        self.stream, self.device, self._last, self._before = stream, stream.device, last, derived_before
        self.jobs: dict[int, Derivation] = {}
        self.widths: list[int] = []  # of all derived values
        self._unknown = torch.zeros((), dtype=torch.int64, device=stream.device)

    def uniform(self, label: str, shape: Shape, width: int = 8) -> Tensor:
        return self.stream.integers(label, shape, width)

    def private(self, label: str, shape: Shape, owner: str) -> Tensor:
        return self.drawn_if(owner == self.role, label, shape)

    def derived(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        check(recipe)
        number, first = len(self.widths), isinstance(recipe, FIRST)
        self.widths.append(width)
        if first and self._last and self.role == "server":
            return self._before[number].clone()
        share = None
        if self.role == "client" and (first or self._last):
            share = self.stream.integers(label, shape, width)
            if first and self._last:
                return share
        if first != self._last:
            self.jobs[number] = Derivation(recipe, shape, width, share)
        # Nobody reads it in this walk.
        return torch.zeros(shape, dtype=torch.int64, device=self.device) if first else self._unknown.expand(shape)

    def uniform_bits(self, label: str, shape: Shape) -> Tensor:
        return self.stream.integers(label, shape)

    def derived_bits(self, label: str, shape: Shape, recipe: Recipe, width: int = 8, narrow: bool = False) -> Tensor:
        return self.derived(label, shape, recipe, width)

    def points(self, group: PointGroup) -> None:
        number, count = len(self.widths), group.runs * group.count
        self.widths.append(8)
        if not self._last:
            return
        keys = aes_keys_of(self.stream, group) if self.role == "server" else None
        points = tuple(cast(CellPoint, recipe) for recipe in group.recipes)
        recipe = KeyWords(group.layout, points, group.runs, roots_of(self.stream, group), keys)
        self.jobs[number] = Derivation(recipe, (count, group.layout.words), 8)


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
    derived: dict[int, Tensor] = {}
    widths: list[int] = []
    rounds = 0
    with pair.using(stream):
        for last in range(WALKS):
            source = PairSource(pair.leader, stream, bool(last), derived)
            walk(source)
            widths = source.widths
            rounds += _evaluated(pair, source, wire, derived)
            pair.kept.clear()
    if corrections is not None:
        for number, width in enumerate(widths):
            corrections.write(derived[number], width)
        corrections.finish()
    return rounds


def _evaluated(pair: Pair, source: PairSource, wire: Wire, derived: dict[int, Tensor]) -> int:
    numbers: Sequence[int] = list(source.jobs)

    def done(task: int, correction: Any) -> None:
        if correction is not None:
            width = source.widths[numbers[task]]
            derived[numbers[task]] = sign_extend(correction, 8 * width)

    jobs = [source.jobs[number] for number in numbers]
    return run_rounds(Graph([()] * len(jobs)), lambda task: evaluate(pair, jobs[task]), done, wire)
