"""Correlations of several runs of a Program at once: the same walk on values that have one dimension more.

One run at a time the dealer and the parties are bound by what each correlation costs whatever its size, and by reading
all weights for a single row. A stacked Program has shapes [runs, ..., *shape], all of one rank, so that what broadcasts
in one run does so in all of them. It is walked offline alone; a run takes its slice of each correlation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch
from typing import Any

from torch import Tensor

from ...protocols.beaver.cells import ExpCorrelation, ReachedCorrelation
from ...protocols.beaver.compare import BitCorrelation, SignCorrelation
from ...protocols.beaver.gates import BitMask, GateCorrelation
from ...protocols.beaver.lookup import DealerNumbers
from ...protocols.beaver.point_function import TablePoints
from ...protocols.beaver.rescale import RescaleCorrelation
from ...protocols.beaver.reveal import Rounding
from ...protocols.beaver.state import RowsBefore
from ...protocols.beaver.values import MaskTerm, Tape
from .program import Instruction, Program, ProgramError

_DIMS = {"permute": "dims", "sum": "dims", "slice": "dim", "index": "dim", "concat": "dim"}
_UNSTACKED = ("weight", "constant")


def stacked(program: Program, runs: int) -> Program:
    """The Program of so many runs. Errors: ProgramError for an operation that has no such form."""
    rank = max(len(item.shape) for item in program.instructions) + 1
    instructions = []
    for item in program.instructions:
        if item.op == "unfold":
            raise ProgramError(f"{item.path or 'program'}: {item.op} is not made for several runs at once")
        inner = program.instructions[item.args[0]].shape if item.args else item.shape
        instructions.append(item if item.op in _UNSTACKED else _wider(item, runs, rank, rank - len(inner)))
    return program.model_copy(update={"instructions": tuple(instructions)})


def _wider(item: Instruction, runs: int, rank: int, more: int) -> Instruction:
    """`more`: dimensions that its argument gets in front."""
    attributes: dict[str, Any] = dict(item.attributes)
    name = _DIMS.get(item.op)
    if name == "dim":
        attributes[name] += more
    elif name == "dims":
        kept = list(range(more)) if item.op == "permute" else []
        attributes[name] = [*kept, *(dim + more for dim in attributes[name])]
    if "sizes" in attributes:
        attributes["sizes"] = list(_shape(tuple(attributes["sizes"]), runs, rank))
    return replace(item, attributes=attributes, shape=_shape(item.shape, runs, rank))


def _shape(shape: tuple[int, ...], runs: int, rank: int) -> tuple[int, ...]:
    return (runs, *(1,) * (rank - 1 - len(shape)), *shape)


def by_run(tape: Tape, program: Program, runs: int) -> list[Tape]:
    """A stacked Program's correlations, run by run. `program`: the one that is run."""
    tapes = [Tape() for _ in range(runs)]
    for key, entry in tape.drain():
        shape = program.instructions[int(key.partition("/")[0])].shape
        for run, mine in enumerate(tapes):
            mine.put(key, _of_run(entry, run, runs, shape))
    return tapes


@singledispatch
def _of_run(entry: Any, run: int, runs: int, shape: tuple[int, ...]) -> Any:
    """One run's part of a correlation. `shape`: of the value that it belongs to."""
    raise TypeError(f"{type(entry).__name__}: is not made for several runs at once; this is a bug")


@_of_run.register
def _(entry: Tensor, run: int, runs: int, shape: tuple[int, ...]) -> Tensor:
    return entry[run].reshape(shape)


@_of_run.register
def _(entry: RowsBefore, run: int, runs: int, shape: tuple[int, ...]) -> RowsBefore:
    return replace(entry, count=entry.count + run * entry.each)


@_of_run.register(list)
@_of_run.register(tuple)
def _(entry: Any, run: int, runs: int, shape: tuple[int, ...]) -> Any:
    return type(entry)(None if part is None else _of_run(part, run, runs, shape) for part in entry)


@_of_run.register
def _(entry: MaskTerm, run: int, runs: int, shape: tuple[int, ...]) -> MaskTerm:
    return replace(entry, value=_of_run(entry.value, run, runs, shape))


@_of_run.register
def _(entry: RescaleCorrelation, run: int, runs: int, shape: tuple[int, ...]) -> RescaleCorrelation:
    mine, low, wrap = (_of_run(part, run, runs, shape) for part in (entry.mine, entry.low, entry.wrap))
    return RescaleCorrelation(mine, low, wrap, entry.packed)


@_of_run.register
def _(entry: Rounding, run: int, runs: int, shape: tuple[int, ...]) -> Rounding:
    return Rounding(_of_run(entry.r, run, runs, shape), _of_run(entry.low, run, runs, shape))


@_of_run.register
def _(entry: BitCorrelation, run: int, runs: int, shape: tuple[int, ...]) -> BitCorrelation:
    return BitCorrelation(_planes(entry.blocks, run, runs), _planes(entry.top, run, runs))


@_of_run.register
def _(entry: GateCorrelation, run: int, runs: int, shape: tuple[int, ...]) -> GateCorrelation:
    return GateCorrelation(_planes(entry.masks, run, runs), _planes(entry.products, run, runs))


@_of_run.register
def _(entry: BitMask, run: int, runs: int, shape: tuple[int, ...]) -> BitMask:
    return BitMask(_planes(entry.bits, run, runs), _of_run(entry.numbers, run, runs, shape))


@_of_run.register
def _(entry: SignCorrelation, run: int, runs: int, shape: tuple[int, ...]) -> SignCorrelation:
    return SignCorrelation(*(_of_run(part, run, runs, shape) for part in (entry.levels, entry.mask)))


@_of_run.register
def _(entry: ReachedCorrelation, run: int, runs: int, shape: tuple[int, ...]) -> ReachedCorrelation:
    cells, levels, mask = (_of_run(part, run, runs, shape) for part in (entry.cells, entry.levels, entry.mask))
    return ReachedCorrelation(cells, levels, mask)


@_of_run.register
def _(entry: ExpCorrelation, run: int, runs: int, shape: tuple[int, ...]) -> ExpCorrelation:
    cells, numbers = (_of_run(part, run, runs, shape) for part in (entry.cells, entry.numbers))
    return ExpCorrelation(cells, _planes(entry.masks, run, runs), numbers)


@_of_run.register
def _(entry: DealerNumbers, run: int, runs: int, shape: tuple[int, ...]) -> DealerNumbers:
    numbers = entry.numbers[run]
    return DealerNumbers(numbers.reshape(numbers.shape[numbers.dim() - len(shape) - 2 :]))


@_of_run.register
def _(entry: TablePoints, run: int, runs: int, shape: tuple[int, ...]) -> TablePoints:
    return entry.of_run(run)


def _planes(planes: Tensor, run: int, runs: int) -> Tensor:
    """Bit planes [..., runs * words]: every run's elements begin a word."""
    words = planes.shape[-1] // runs
    return planes[..., run * words : (run + 1) * words].contiguous()
