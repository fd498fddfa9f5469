"""Correlations of several runs at once: each run's are its own, and cost what one alone costs."""

import pytest
import torch
from blindformer.models.program.block import stacked
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.program import Instruction, Program, ProgramError
from blindformer.protocols.beaver.rescale import RescaleCorrelation
from blindformer.protocols.states import KeptStates
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.models.generation.conftest import compiled, model  # noqa: F401

RUNS = 3


AMONG = pytest.mark.parametrize("owners", [None, {}], ids=["two parties", "N parties"])


def tapes(program, runs, weights, owners=None):
    correlations = Correlations(program, owners, runs)
    tape = correlations.follow(Stream(new_seed(), "masks"), weights, states=KeptStates())
    return correlations.tapes(tape)


@AMONG
def test_every_run_has_all_that_one_alone_has(compiled, owners):  # noqa: F811
    program = compiled.program.part("1@64")
    (alone,) = tapes(program, 1, compiled.weights, owners)
    drawn = tapes(program, RUNS, compiled.weights, owners)
    assert [len(tape) for tape in drawn] == [len(alone)] * RUNS
    shapes = [str(_shapes(dict(tape.drain()))) for tape in (alone, *drawn)]
    assert len(set(shapes)) == 1


def _shapes(entry):
    if isinstance(entry, torch.Tensor):
        return tuple(entry.shape)
    if isinstance(entry, dict):
        return {key: _shapes(part) for key, part in sorted(entry.items())}
    if isinstance(entry, list | tuple):
        return [_shapes(part) for part in entry]
    return _shapes(dict(vars(entry))) if hasattr(entry, "__dict__") and type(entry).__name__ != "RowsBefore" else None


@AMONG
def test_no_two_runs_share_a_mask(compiled, owners):  # noqa: F811
    drawn = [dict(tape.drain()) for tape in tapes(compiled.program.part("1@64"), RUNS, compiled.weights, owners)]
    masks = [[entry.mine for entry in tape.values() if isinstance(entry, RescaleCorrelation)] for tape in drawn]
    assert len(masks[0]) > 30
    assert not any(torch.equal(one, other) for one, other in zip(masks[0], masks[1], strict=True))


@AMONG
def test_what_is_sent_is_what_the_runs_alone_send(compiled, owners):  # noqa: F811
    one = Correlations(compiled.program.part("1@64"), owners)
    assert sum(one.of_runs(RUNS).layout) == RUNS * sum(one.layout)


def test_what_has_no_such_form_is_refused():
    item = {"op": "unfold", "attributes": {"kernel": [1], "stride": [1], "padding": [0]}}
    program = Program(
        instructions=(Instruction(op="client", shape=(1, 4, 4)), Instruction(args=(0,), shape=(4, 4), **item))
    )
    with pytest.raises(ProgramError, match="several runs at once"):
        stacked(program, RUNS)
