"""One suite of programs, every protocol. A new protocol adds `setups/<name>.py` with `run(case) -> outputs` and passes.

Each value is exact in the ring given its own arguments; a rescale between two is the floor or the ceiling of the exact
quotient.
Set-ups of protocols with a price hold every run against it.
"""

from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec

import pytest
import torch
from blindformer.models.program import correlations
from blindformer.protocols.base import available, find
from blindformer.protocols.errors import BlindformerError
from blindformer.tests import levels
from blindformer.tests.protocols.cases import CASES, FEW, ONE_EACH
from blindformer.tests.protocols.programs import Draft, case_of, check, handed_over
from blindformer.tests.protocols.random_programs import programs
from hypothesis import given
from hypothesis import strategies as st

NEEDS = {"crypten": "crypten", "ckks": "tenseal"}
INSTALLED = [name for name in available() if (name not in NEEDS or find_spec(NEEDS[name])) and find(name).exact]
ON_PROGRAMS = [
    name for name in INSTALLED if find(name).supported_operations
]  # of layers alone: tests/protocols/delegated


# The kernels' bits are held at every level in test_kernels.py and test_matmul.py.
at_two_levels = pytest.mark.parametrize("level", levels.OWN_AND_TORCH, indirect=True)


@pytest.fixture(params=levels.EVERY)
def level(request):
    with levels.at(request.param):
        yield


@pytest.fixture(params=ON_PROGRAMS)
def run(request, level):
    """run(case) -> outputs by name, on a protocol of so many `parties`, at a level of processors; a program that the
    protocol does not offer is skipped."""
    setup = import_module(f"blindformer.tests.protocols.setups.{request.param}")

    def checked(case):
        missing = case.program.needs() - find(request.param).supported_operations
        if missing:
            pytest.skip(f"{request.param} does not offer {', '.join(sorted(missing))}")
        return setup.run(case)

    checked.parties = getattr(setup, "PARTIES", 2)
    return checked


@contextmanager
def tapes(large):
    """Held as those of large correlations are, or not."""
    with pytest.MonkeyPatch.context() as patch:
        if large:
            patch.setattr(correlations, "LARGE", 0)
        yield


OWN, *TORCH = levels.OWN_AND_TORCH
RUNS = [(OWN, name, False) for name in CASES]
RUNS += [(level, name, False) for level in TORCH for name in ONE_EACH] + [(OWN, name, True) for name in FEW]


@pytest.mark.parametrize(
    ("level", "name", "away"),
    [pytest.param(level, name, away, id=f"{level}-{name}{'-away' * away}") for level, name, away in RUNS],
    indirect=["level"],
)
def test_every_value_follows_from_its_arguments(run, name, away):
    case = case_of(name, away)
    assert not (away and case.client)
    with tapes(large=away):
        check(case, run(case), run.parties)


@pytest.mark.parametrize("level", [OWN], indirect=True)  # at that of torch every operation runs above
@given(programs(), st.booleans(), st.booleans())
def test_any_program(run, case, owner_away, large):
    case = handed_over(case) if owner_away else case
    with tapes(large):
        check(case, run(case), run.parties)


@at_two_levels
@pytest.mark.parametrize("past", [0.0, 0.25, 1.0])
def test_a_rescale_out_of_range_loses_its_ring_as_often_as_in_clear(run, past):
    """Of arguments (1 + past) 2^(w-2), past / 2 lose 2^w: `clear` draws what parties leave to chance."""
    d, count, edge = Draft(), 20000, 1 << 38
    x = d("mul_private", d.client(torch.tensor([edge + int(past * edge) - 1])), d.weight(torch.ones(count)), width=40)
    d("rescale", x, bits=12, ring=40)
    low = sum(int((value < 0).sum()) for name, value in run(d.case()).items() if int(name) > x)
    assert abs(low / count - past / 2) < 0.02


def test_every_protocol_has_a_set_up_and_says_what_it_is():
    """One that is not exact has tests of its own (test_ckks.py), as one that runs no Programs (delegated)."""
    for name in INSTALLED:
        protocol = find(name)
        assert protocol.name == name
        assert bool(protocol.supported_operations) == bool(find_spec(f"blindformer.tests.protocols.setups.{name}"))
        assert bool(protocol.supported_operations) == (name != "delegated")
        assert protocol.security
        assert protocol.parties


def test_an_unknown_protocol_is_answered_with_the_known_ones():
    with pytest.raises(BlindformerError, match=r"protocol enigma: not known; choose one of beaver, ckks, clear"):
        find("enigma")
