"""What a dealer needs to make a Program's correlations is known before any of them is made."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from blindformer.models.program.correlations import TORCH_SCRATCH, Correlations
from blindformer.models.program.program import Instruction, Program
from blindformer.parties.session.masked_weights import WeightMasks
from blindformer.protocols.beaver.compare import BitCorrelation
from blindformer.protocols.beaver.lookup import DealerNumbers
from blindformer.protocols.beaver.point_function import PointKeys, TablePoints
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.beaver.values import Tape
from blindformer.protocols.devices import CPU
from blindformer.protocols.kernels import library
from blindformer.protocols.kernels.library import constant
from blindformer.protocols.states import KeptStates
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.models.generation.conftest import compiled, model  # noqa: F401
from blindformer.tests.protocols.cases import CASES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOSE = 7 if library.library else 7 * TORCH_SCRATCH  # times what is really held: cells of tables take a byte or two
SCRATCH = 8 * constant("matmul_scratch") if library.library else 0  # bytes of one tensor, however small a product is


class Memory(TorchDispatchMode):
    """Bytes of all tensors that are made while it is on, as long as they live: each storage once, and no scratch."""

    def __init__(self) -> None:
        super().__init__()
        self.alive, self.held, self.peak = Counter[int](), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and tensor.is_cpu and storage.nbytes() != SCRATCH:
                self._count(storage.data_ptr(), storage.nbytes(), 1)
                weakref.finalize(tensor, self._count, storage.data_ptr(), storage.nbytes(), -1)
        return out

    def _count(self, place: int, size: int, by: int) -> None:
        before = self.alive[place]
        self.alive[place] += by
        self.held += size * ((self.alive[place] > 0) - (before > 0))
        self.peak = max(self.peak, self.held)


class Nowhere:
    def send(self, data: bytearray) -> None:
        pass


def measured(correlations: Correlations, parties: int = 2, states: KeptStates | None = None) -> int:
    """Bytes of tensors that a dealer holds at most."""
    shapes = correlations.program.weight_shapes()
    weights = WeightMasks({name: new_seed() for name in shapes}, shapes)
    streams = [Stream(new_seed(), "query") for _ in range(parties)]
    corrections = Corrections(Nowhere(), correlations.layout)  # type: ignore[arg-type]
    with Memory() as memory:
        correlations.deal(streams, corrections, weights, states)
    return memory.peak


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("owners", [None, {}], ids=["two parties", "three parties"])
def test_a_dealer_holds_no_more_than_is_said(name, owners):
    correlations = Correlations(CASES[name]().program, owners)
    measured_bytes = measured(correlations, 2 if owners is None else 3)
    assert measured_bytes <= correlations.dealer_bytes() <= LOOSE * measured_bytes


@pytest.mark.parametrize("runs", [1, 8])
def test_nor_for_several_runs_of_a_conversation(compiled, runs):  # noqa: F811
    correlations = Correlations(compiled.program.part("1@64")).of_runs(runs)
    states, most = KeptStates(), 0
    for _ in range(3):
        most = max(most, measured(correlations, states=states))
    kept = sum(rows.nbytes for rows in states.held.values())
    assert most + kept <= correlations.dealer_bytes() <= LOOSE * most


def test_values_that_nothing_reads_any_more_do_not_count():
    size, products = 1 << 20, 50
    chain = [Instruction(op="client", attributes={"name": "x"}, shape=(size,))]
    chain += [Instruction(op="mul", args=(number, number), shape=(size,)) for number in range(products)]
    assert Correlations(Program(instructions=tuple(chain))).dealer_bytes() < products * 8 * size


class Widths:
    """A party's stream and the dealer's corrections, of zeros: the bytes that are drawn and read, and those of the
    integers that hold them."""

    def __init__(self) -> None:
        self.travelled = self.numbers = self.held = 0

    device = CPU

    def on(self, device: torch.device) -> Widths:
        return self

    def integers(self, label: str, shape: tuple[int, ...], width: int = 8, narrow: bool = False) -> torch.Tensor:
        return self.read(shape, width, narrow)

    def read(
        self, shape: tuple[int, ...], width: int, narrow: bool = False, device: torch.device = CPU
    ) -> torch.Tensor:
        count, size = math.prod(shape), next(size for size in (1, 2, 4, 8) if size >= (width if narrow else 8))
        self.travelled, self.numbers = self.travelled + count * width, self.numbers + count
        self.held += count * size
        return torch.zeros(shape, dtype={1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])

    def finish(self) -> None:
        pass


def tape_bytes(tape: Tape) -> int:
    """Bytes of a tape's tensors, each counted once."""
    sizes = {id(tensor): tensor.nbytes for entry in tape.entries() for tensor in _tensors(entry)}
    return sum(sizes.values())


def _tensors(entry: object) -> Iterable[torch.Tensor]:
    if isinstance(entry, torch.Tensor):
        yield entry
    elif isinstance(entry, list | tuple):
        for item in entry:
            yield from _tensors(item)
    elif hasattr(entry, "__dict__"):  # a correlation of several parts
        for item in vars(entry).values():
            yield from _tensors(item)


def keys_of(tape: Tape) -> list[PointKeys]:
    groups = dict.fromkeys(entry.group for entry in tape.entries() if isinstance(entry, TablePoints))
    return [group.keys for group in groups if group.keys is not None]


@pytest.mark.parametrize("large", [False, True])
def test_numbers_out_of_keys_count_where_a_party_holds_them_and_many_are_made_where_they_are_used(large, monkeypatch):
    correlations = Correlations(CASES["lookup-(12, 4, 0)"]().program)
    size = correlations.held_bytes
    monkeypatch.setattr("blindformer.models.program.correlations.GROWN", size - sum(correlations.layout) - large)
    widths: Any = Widths()
    keys = keys_of(correlations.lead(widths, widths))
    grown = sum(one.layout.numbers * len(one.roots) for one in keys)
    assert size == sum(correlations.layout) + grown
    assert sum(0 if one.kept is None else one.kept.nbytes for one in keys) == (0 if large else grown)


def test_numbers_that_are_drawn_later_are_the_same_and_take_no_room(compiled):  # noqa: F811
    correlations, seed = Correlations(compiled.program.part("8@64")), new_seed()
    tapes = [
        correlations.follow(Stream(seed, "masks"), compiled.weights, states=KeptStates(), large=large)
        for large in (False, True)
    ]
    sizes = [tape_bytes(tape) for tape in tapes]
    (kept, drawn) = ({key: entry for key, entry in tape.drain() if isinstance(entry, DealerNumbers)} for tape in tapes)
    assert kept.keys() == drawn.keys() != set()
    assert all(torch.equal(entry.numbers, drawn[key].numbers) for key, entry in kept.items())
    assert sizes[1] < sizes[0] - sum(entry.numbers.nbytes for entry in kept.values()) < sizes[0]


@pytest.mark.parametrize("runs", [1, 3])
def test_a_large_tape_is_as_narrow_as_what_travels(compiled, monkeypatch, runs):  # noqa: F811
    """But what is made out of keys; and bits, that have of each block the product of none of them, which no party
    draws."""
    monkeypatch.setattr("blindformer.models.program.correlations.LARGE", 0)
    widths = Widths()
    correlations = Correlations(compiled.program.part("1@64"), runs=runs)
    tape = correlations.lead(widths, widths, KeptStates())  # type: ignore[arg-type]
    blocks = [entry.blocks for entry in tape.entries() if isinstance(entry, BitCorrelation)]
    grown = sum(one.kept.nbytes for one in keys_of(tape) if one.kept is not None)
    assert tape_bytes(tape) == widths.held + grown + sum(8 * bits.shape[0] * bits.shape[-1] for bits in blocks)
    assert widths.travelled <= widths.held < 0.9 * 8 * widths.numbers
