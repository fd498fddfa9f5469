"""What a dealer needs to make a Program's correlations is known before any of them is made."""

from __future__ import annotations

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from blindformer.models.program.correlations import TORCH_SCRATCH, Correlations
from blindformer.models.program.program import Instruction, Program
from blindformer.parties.session.masked_weights import WeightMasks
from blindformer.protocols.beaver.source import Corrections
from blindformer.protocols.kernels import library
from blindformer.protocols.kernels.library import constant
from blindformer.protocols.states import KeptStates
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.models.generation.conftest import compiled, model  # noqa: F401
from blindformer.tests.protocols.cases import CASES
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOSE = 5 if library.library else 5 * TORCH_SCRATCH  # times what is really held
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
    assert measured_bytes <= correlations.dealer_bytes <= LOOSE * measured_bytes


@pytest.mark.parametrize("runs", [1, 8])
def test_nor_for_several_runs_of_a_conversation(compiled, runs):  # noqa: F811
    correlations = Correlations(compiled.program.part("1@64")).of_runs(runs)
    states, most = KeptStates(), 0
    for _ in range(3):
        most = max(most, measured(correlations, states=states))
    kept = sum(rows.nbytes for rows in states.held.values())
    assert most + kept <= correlations.dealer_bytes <= LOOSE * most


def test_values_that_nothing_reads_any_more_do_not_count():
    size, products = 1 << 20, 50
    chain = [Instruction(op="client", attributes={"name": "x"}, shape=(size,))]
    chain += [Instruction(op="mul", args=(number, number), shape=(size,)) for number in range(products)]
    assert Correlations(Program(instructions=tuple(chain))).dealer_bytes < products * 8 * size
