"""A program's correlations, made by the same walk at every role: the dealer, the leader, the other parties, a count.

The leader is the party that the dealer sends its corrections to: the model's owner. Two parties run protocol beaver,
N parties protocol crypten, on the same streams of masks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ...protocols.beaver.context import RowsAdded
from ...protocols.beaver.engine import OfflineEngine
from ...protocols.beaver.source import ClientSource, Corrections, CountingSource, DealerSource, ServerSource, Source
from ...protocols.beaver.values import Tape
from ...protocols.crypten.engine import NPartyOfflineEngine, Owners
from ...protocols.crypten.source import LeaderSource, NPartyCount, NPartyDealer, NPartySource, PartySource
from ...protocols.devices import CPU, META
from ...protocols.kernels import library
from ...protocols.operations import of_kind
from ...protocols.pair.source import make_corrections
from ...protocols.pair.steps import Pair
from ...protocols.ring import Ring
from ...protocols.rounds import Wire
from ...protocols.states import KeptStates
from ...protocols.streams import Stream
from ...protocols.wire import elements
from .block import by_run, stacked
from .interpreter import interpret
from .program import Program

LARGE = 250_000_000  # bytes of a run's correlations, beyond which they take room that is worth time
GROWN = LARGE // 2  # bytes of numbers out of keys that are made ahead of the query
TORCH_SCRATCH = 5  # times what is held: what torch's functions hold besides, where no kernels in C compute


def is_large(size: int) -> bool:
    """Whether correlations of so many bytes are held as narrow as they travel, made no sooner than there is room for
    them, and drawn where they are used."""
    return size > LARGE


def are_grown_ahead(grown: int, dealt: int) -> bool:
    """Whether so many bytes of numbers are made out of their keys ahead of the query: where they are few, or few beside
    what the dealer sends."""
    return grown <= max(GROWN, dealt // 4)


class CorrelationSizes(NamedTuple):
    """What a walk without storage says of one run. In bytes; `peak`: of the values that the dealer holds together;
    `grown`: of the numbers that a party makes out of keys."""

    layout: tuple[int, ...]
    peak: int
    grown: int


@dataclass(frozen=True)
class Correlations:
    """Of two parties, or (`owners`: a data owner's rank, by the name of its value) of N parties.

    `states` of its methods: of the session that the run belongs to, at this role, in the order of the runs.
    """

    program: Program
    owners: Owners | None = None
    runs: int = 1

    @property
    def layout(self) -> tuple[int, ...]:
        """Bytes of each of the dealer's corrections, in order: the same for any number of rows kept."""
        return tuple(self.runs * size for size in self._counted.layout)

    @property
    def held_bytes(self) -> int:
        """Of what a party may hold: the corrections, and the numbers that it makes out of keys."""
        return self.runs * (sum(self._counted.layout) + self._counted.grown)

    def dealer_bytes(self, device: torch.device = CPU) -> int:
        """The memory that the dealer needs at most to make them, found without making any: values that something still
        reads and what it takes to make one, the masks of weights, one of which is being drawn, and the rows that the
        session keeps, which are held before a run and after it, and are read by each."""
        weights = [8 * elements(shape) for shape in self.program.weight_shapes().values()]
        rows = sum(8 * elements(item.shape) for item in self.program.instructions if item.op == "state")
        once = sum(weights) + max(weights, default=0)
        scratch = 1 if device == CPU and library.library is not None else TORCH_SCRATCH
        return once + scratch * self.runs * self._counted.peak + (self.runs + 3) * rows

    @property
    def _counted(self) -> CorrelationSizes:
        return _count(ByHash(self.program), None if self.owners is None else tuple(sorted(self.owners.items())))

    def of_runs(self, runs: int) -> Correlations:
        """Of so many runs, one after the other, made at once."""
        return replace(self, runs=runs)

    def deal(
        self,
        streams: Sequence[Stream],
        corrections: Corrections,
        weights: Mapping[str, Tensor],
        states: KeptStates | None = None,
    ) -> None:
        """At the dealer: send the corrections. `streams`: every party's masks, by rank; `weights`: the masks B."""
        if self.owners is None:
            leader, other = streams
            self._walk(DealerSource(leader, other, corrections), weights, states)
        else:
            self._walk(NPartyDealer(streams, corrections), weights, states)
        corrections.finish()

    def lead(self, stream: Stream, corrections: Corrections, states: KeptStates | None = None) -> Tape:
        """At the leader: read the corrections."""
        source = ServerSource if self.owners is None else LeaderSource
        ahead = are_grown_ahead(self.runs * self._counted.grown, sum(self.layout))
        tape = self._walk(source(stream, corrections, is_large(self.held_bytes), ahead), {}, states)
        corrections.finish()
        return tape

    def follow(
        self,
        stream: Stream,
        masked: Mapping[str, Tensor],
        rank: int = 1,
        states: KeptStates | None = None,
        step: Callable[[Tape], None] | None = None,
        large: bool = False,
    ) -> Tape:
        """At another party: nothing is sent. `masked`: the masked weights D. `step`: called after each operation, with
        what there is. `large`: whether room is worth more than time (`is_large`); of two parties."""
        later = large and self.runs == 1
        source = ClientSource(stream, large, later) if self.owners is None else PartySource(stream, rank)
        return self._walk(source, masked, states, step)

    def make(
        self,
        pair: Pair,
        stream: Stream,
        wire: Wire,
        weights: Mapping[str, Tensor],
        corrections: Corrections | None = None,
    ) -> int:
        """Without a dealer, at one of two parties: make the corrections with the other, and write them at the server.
        `weights`: W at the server, nothing at the client. Returns the rounds."""
        return make_corrections(pair, stream, self.pair_walk(weights if pair.leader else {}), wire, corrections)

    def pair_walk(self, weights: Mapping[str, Tensor]) -> Callable[[Source], object]:
        """The offline phase of one of two parties without a dealer. `weights`: zeros, if there are none."""
        zeros = {name: torch.zeros(()).long().expand(shape) for name, shape in self.program.weight_shapes().items()}
        return lambda source: self._walk(source, {**zeros, **weights}, None)

    def products(self) -> list[str]:
        """The instructions, of two parties, whose correlations are those of a product with a private weight."""
        items, private = self.program.instructions, of_kind("private")
        of_weights = (n for n, item in enumerate(items) if item.op in private and items[item.args[1]].op == "weight")
        return [str(number) for number in of_weights]

    def audit(self, stream: Stream, weights: Mapping[str, Tensor], dealt: Mapping[str, Tensor]) -> Tape:
        """At the server of two parties: the client's correlations, from all of the client's masks. `weights`: W;
        `dealt`: the server's own shares of the `products`."""
        source = ClientSource(stream, large := is_large(self.held_bytes), later=large)
        engine = OfflineEngine(source, Ring(self.program.ring), weights)
        engine.offline.dealt = dealt
        interpret(self.program, engine)
        engine.offline.finish()
        return engine.tape

    def count(self, states: KeptStates | None = None) -> CorrelationSizes:
        """By a walk on tensors without storage."""
        source = CountingSource() if self.owners is None else NPartyCount()
        self._walk(source, placeholders(self.program), states)
        return CorrelationSizes(tuple(source.layout), source.peak, source.grown)

    def _walk(
        self,
        source: Source,
        weights: Mapping[str, Tensor],
        states: KeptStates | None,
        step: Callable[[Tape], None] | None = None,
    ) -> Tape:
        ring, program = Ring(self.program.ring), self.program
        if self.runs > 1:
            program = _stacked(ByHash(self.program), self.runs)
        more = (self.runs, self._keeps(program))
        if self.owners is None:
            engine = OfflineEngine(source, ring, weights, states, *more)
        else:
            engine = NPartyOfflineEngine(cast(NPartySource, source), ring, weights, self.owners, states, *more)
        interpret(program, engine, progress=step and (lambda number: step(engine.tape)))
        engine.offline.finish()
        return engine.tape

    def _keeps(self, wide: Program) -> dict[str, RowsAdded]:
        """What each of several runs adds, by state."""
        added = {}
        for item in self.program.instructions if self.runs > 1 else ():
            if item.op == "keep":
                number = item.args[0]
                each = self.program.instructions[number].shape
                added[item.attributes["name"]] = RowsAdded(str(number), wide.instructions[number].shape, each)
        return added

    def tapes(self, tape: Tape) -> list[Tape]:
        """Run by run."""
        return [tape] if self.runs == 1 else by_run(tape, self.program, self.runs)


def placeholders(program: Program) -> dict[str, Tensor]:
    """The weights' shapes, as tensors without storage."""
    return {name: torch.empty(shape, dtype=torch.int64, device=META) for name, shape in program.weight_shapes().items()}


class ByHash:
    """A program as the key of a cache: its hash stands for it."""

    def __init__(self, program: Program) -> None:
        self.program, self._digest = program, program.hash()

    def __hash__(self) -> int:
        return hash(self._digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ByHash) and other._digest == self._digest


@lru_cache(maxsize=64)  # of all parts of a conversation, too
def _count(key: ByHash, owners: tuple[tuple[str, int], ...] | None) -> CorrelationSizes:
    return Correlations(key.program, None if owners is None else dict(owners)).count()


@lru_cache(maxsize=8)  # each as large as the Program itself: a client says of how many runs
def _stacked(key: ByHash, runs: int) -> Program:
    return stacked(key.program, runs)
