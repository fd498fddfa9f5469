"""Without a dealer: two parties make the corrections that a dealer would send, or say of what they cannot."""

from __future__ import annotations

import re

import pytest
from blindformer.models.program.correlations import Correlations
from blindformer.protocols.errors import CorrelationError
from blindformer.protocols.pair.source import PairWire
from blindformer.protocols.streams import Stream, new_seed
from blindformer.tests.protocols.cases import FEW
from blindformer.tests.protocols.ideal import Trusted
from blindformer.tests.protocols.pair_parties import asked, dealt, fresh_seeds, made
from blindformer.tests.protocols.programs import Data, Draft, case_of, check, hidden
from blindformer.tests.shared.memory import memory_pair

# They read numbers of cells, keys, or functions of a mask, which have no evaluation between two parties yet.
DEALT = re.compile(r"lookup|exp|fourier|sums_with_public_numbers")
MADE = [name for name in FEW if not DEALT.match(name)]


@pytest.mark.parametrize("name", MADE)
def test_answers_are_right_with_what_the_pair_made(name):
    case, seeds = case_of(name), fresh_seeds()
    if case.inputs:
        pytest.skip("of an owner who takes no part")
    check(case, asked(case, seeds, made(case, seeds).kept[0]))


def test_the_pair_makes_what_a_dealer_would_send():
    """To the byte, where all bits of the values are read: of the same seeds, and with the weights as their masks."""
    for name in ("linears_that_read_one_value", "product", "less-24", "relu", "matrix_products", "polynomial-1"):
        case, seeds = case_of(name), fresh_seeds()
        assert made(case, seeds).kept[0].content == dealt(case, seeds).content, name


def test_what_two_parties_cannot_make_is_named_and_nothing_is_sent():
    d, data = Draft(), Data(1)
    d("lookup", hidden(d, data, 3, 5), d.constant(data.ints(8, 2, bits=18)), start=-5, bits=12, low=9, drop=3)
    correlations = Correlations(d.case().program)
    server, _ = memory_pair("server", "client", 1)
    wire = PairWire.over(server, Trusted().products(True))
    with pytest.raises(CorrelationError, match="CellNumbers: two parties alone cannot make it yet"):
        correlations.make(Trusted().pair(True), Stream(new_seed(), "query"), wire, d.case().weights)
    assert server.meter.sent == 0
