"""Programs that no compiler writes, at the party whose data they are after: each number has its mask, or is not sent.

Whoever compiles a model writes the Program and the client's prelude. One that declares another shape than its values
have would put one mask over several numbers, and what goes out would show their differences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from blindformer.errors import BlindformerError
from blindformer.models.program.correlations import Correlations
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.program import Program
from blindformer.models.program.two_server import for_two_servers, input_layout
from blindformer.protocols.beaver.engine import OnlineEngine
from blindformer.protocols.beaver.owner import split
from blindformer.protocols.crypten.engine import NPartyOnlineEngine
from blindformer.protocols.errors import CorrelationError
from blindformer.protocols.ring import Ring
from blindformer.protocols.rounds import Swap
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.protocols.programs import Case, Data, Draft, handed_over
from blindformer.tests.protocols.random_programs import programs
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

RUNS = 6  # with fresh masks each: a difference of two numbers of a byte is the same in all once in 2^40
EXAMPLES = 400


@dataclass
class Attempt:
    """What P1 sent in a run, array by array, each number moved to the top of a word; and what ended the run, if not its
    result."""

    arrays: list[Tensor] = field(default_factory=list)
    error: Exception | None = None


def attempt(program: Program, values: Mapping[str, Tensor], constants: Mapping[str, Tensor], many: bool) -> Attempt:
    """A run of P1 with fresh masks. The other parties' messages are zeros."""
    outcome = Attempt()

    def wire(swaps: list[Swap]) -> list[Tensor | None]:
        sends = [(swap.send.flatten(), swap.width) for swap in swaps if swap.send is not None]
        outcome.arrays += [numbers << 64 - 8 * width for numbers, width in sends if width and len(numbers)]
        return [None if s.expect is None else torch.zeros(s.expect, dtype=torch.int64) for s in swaps]

    try:
        weights = {name: torch.zeros(shape, dtype=torch.int64) for name, shape in program.weight_shapes().items()}
        tape = Correlations(program, {} if many else None).follow(Stream(new_seed(), "query"), weights)
        if many:
            engine = NPartyOnlineEngine(1, tape, Ring(), values, constants)
        else:
            engine = OnlineEngine("client", tape, Ring(), values, constants)
        interpret(program, engine, wire)
    except Exception as error:
        outcome.error = error
    return outcome


def same_whatever_the_masks(runs: list[list[Tensor]]) -> bool:
    """Whether two numbers of one array, or the first numbers of two arrays, are as far apart in all runs."""
    for how in (torch.sub, torch.bitwise_xor):
        for arrays in (*zip(*runs, strict=True), [torch.stack([array[0] for array in run]) for run in runs if run]):
            for at in range(min(3, len(arrays[0]) - 1) if arrays else 0):
                apart = torch.stack([how(array[at + 1 :], array[at]) for array in arrays])
                if bool((apart == apart[0]).all(0).any()):
                    return True
    return False


def tells(case: Case, many: bool = False) -> Exception | None:
    """Fails if what P1 sends tells of its values, however the run ends. The error that ended it."""
    runs = [attempt(case.program, {**case.client, **case.inputs}, case.constants, many) for _ in range(RUNS)]
    assert len({len(run.arrays) for run in runs}) == 1
    assert not same_whatever_the_masks([run.arrays for run in runs])
    return runs[0].error


# Those of the audit.


def declared(case: Case, number: int, *shape: int) -> Case:
    """The program, with another shape for one of its values."""
    items = list(case.program.instructions)
    items[number] = replace(items[number], shape=shape)
    return replace(case, program=case.program.model_copy(update={"instructions": tuple(items)}))


def token_ids(d: Draft, data: Data) -> int:
    """A prelude that makes the tokens of a text of a value that is declared as one number."""
    ids = d.client(data.ints(1, 12, bits=14))
    d("mul_private", ids, d.weight(data.ints(1, 1)))
    return ids


def product(d: Draft, data: Data) -> int:
    return d("mul", d.client(data.ints(4, 1)), d.client(data.ints(1, 4)))


def rescaled(d: Draft, data: Data) -> int:
    x = d("mul_private", d.client(data.ints(6, 1, bits=30)), d.weight(data.ints(1, 1)))
    return d("rescale", x, bits=12)


def compared(d: Draft, data: Data) -> int:
    x = d("mul_private", d.client(data.ints(70, bits=30)), d.weight(data.ints(1)))
    return d("less", x, threshold=3, bits=40)


def by_constant(d: Draft, data: Data) -> int:
    """A public number that is larger than declared makes the sum larger than its mask."""
    number = d.constant(data.ints(5))
    total = d("add", d.client(data.ints(1)), number)
    d("mul", total, total)
    return number


HOSTILE = [token_ids, product, rescaled, compared, by_constant]


@pytest.mark.parametrize("many", [False, True], ids=["beaver", "crypten"])
@pytest.mark.parametrize("away", [False, True], ids=["", "owner away"])
@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_value_of_another_shape_than_declared_is_refused(make, away, many):
    draft = Draft()
    number = make(draft, Data(3))
    honest = draft.case()
    hostile = declared(honest, number, *(1 for _ in draft.values[number].shape))
    if away:
        honest, hostile = handed_over(honest), handed_over(hostile)
    assert tells(honest, many) is None
    error = tells(hostile, many)
    assert isinstance(error, BlindformerError), error


def test_an_owner_who_takes_no_part_shares_nothing_that_is_larger_than_declared():
    draft = Draft()
    number = token_ids(draft, Data(3))
    hostile = declared(draft.case(), number, 1, 1)
    with pytest.raises(CorrelationError, match="nothing was sent"):
        split(hostile.client, new_seed(), input_layout(for_two_servers(hostile.program)))


# Any others.

SHAPES = st.lists(st.integers(1, 4), max_size=3).map(tuple)


@st.composite
def hostile(draw: st.DrawFn) -> Case:
    """A program of any operations, with up to three lies: shapes, widths, arguments, attributes, sources."""
    case = draw(programs())
    items, client, constants = list(case.program.instructions), dict(case.client), dict(case.constants)
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(items) - 1))
        item, kind = items[number], draw(st.sampled_from(("shape", "ones", "width", "args", "attributes", "source")))
        if kind == "shape":
            item = replace(item, shape=draw(SHAPES))
        elif kind == "ones":
            item = replace(item, shape=tuple(1 for _ in item.shape))
        elif kind == "width":
            item = replace(item, width=draw(st.integers(1, 64)))
        elif kind == "args" and item.args:
            args = draw(st.lists(st.integers(0, number - 1), min_size=len(item.args), max_size=len(item.args)))
            item = replace(item, args=tuple(args))
        elif kind == "attributes":
            numbers = {n: draw(st.integers(0, 64)) for n, v in item.attributes.items() if type(v) is int}
            item = replace(item, attributes={**item.attributes, **numbers})
        elif kind == "source" and (name := item.attributes.get("name")) in {**client, **constants}:
            table = client if name in client else constants
            table[name] = Data(draw(st.integers(0, 99))).ints(*draw(SHAPES))
        items[number] = item
    return replace(
        case, program=case.program.model_copy(update={"instructions": tuple(items)}), client=client, constants=constants
    )


@pytest.mark.parametrize("many", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["beaver", "crypten"])
@given(case=hostile(), away=st.booleans())
@settings(max_examples=EXAMPLES)
def test_whatever_a_program_declares_nothing_goes_out_unmasked(many, case, away):
    try:
        case.program.check()
        case = handed_over(case) if away else case
    except Exception:  # refused before anything runs
        event("refused as a program")
        return
    error = tells(case, many)
    event("ran" if error is None else f"refused: {isinstance(error, BlindformerError) or repr(error)[:70]}")
