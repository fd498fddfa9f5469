"""Preprocessed correlations: what a party that asks can make the others hold, and that none is made twice."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from blindformer.parties.session.messages import PartRun
from blindformer.parties.session.n_party import PartyModel
from blindformer.parties.session.preprocessed import AheadError, AheadLimits, tape_bytes
from blindformer.protocols.errors import CorrelationError, PeerProtocolError
from blindformer.tests.parties.session.site import Follower, small_case

CASE = small_case()


class Carol(Follower):
    @property
    def held(self) -> int:
        return len(self.party._tapes)


@pytest.fixture
def carol():
    with ExitStack() as stack:

        def make(**limits) -> Carol:
            one = Carol(PartyModel(CASE.program, CASE.constants), CASE.weights, AheadLimits(**limits))
            stack.callback(one.close)
            return one

        yield make


def test_as_many_as_are_asked_for_are_held(carol):
    one = carol()
    one.hear({"ahead": 2, "from": 0}, {"ready": 0}, {"ready": 1}, {"bye": True})
    assert one.held == 2


@pytest.mark.parametrize("count", [5, 1_000_000, 2**52])
def test_more_queries_than_allowed_are_refused_before_any_is_made(carol, count):
    one = carol(queries=4)
    with pytest.raises(AheadError, match=rf"^ahead: correlations of {count} queries are asked for, and at most 4 "):
        one.hear({"ahead": count, "from": 0})
    assert one.held == 0


def test_those_that_are_held_count(carol):
    one = carol(queries=4)
    with pytest.raises(AheadError, match=r"of 5 queries"):
        one.hear({"ahead": 2, "from": 0}, {"ready": 0}, {"ready": 1}, {"ahead": 3, "from": 2})


def test_more_bytes_than_allowed_are_refused_after_one(carol):
    one = carol()
    one.hear({"ahead": 1, "from": 0}, {"ready": 0}, {"bye": True})
    size = tape_bytes(one.party._tapes.take(0, PartRun()))
    assert size > 8 * sum(weight.shape[-1] for weight in CASE.weights.values())
    small = carol(bytes=3 * size)
    small.hear({"ahead": 3, "from": 0}, *({"ready": number} for number in range(3)), {"bye": True})
    smaller = carol(bytes=3 * size - 1)
    with pytest.raises(
        AheadError, match=r"^ahead: the correlations asked for take \S+ GB, and at most \S+ GB are held"
    ):
        smaller.hear({"ahead": 3, "from": 0}, {"ready": 0})
    assert smaller.held == 0


def test_numbers_count_up(carol):
    one = carol()
    with pytest.raises(PeerProtocolError, match="asked for a from out of order"):
        one.hear({"ahead": 2, "from": 0}, {"ready": 0}, {"ready": 1}, {"ahead": 1, "from": 1})


def test_correlations_that_were_skipped_are_not_made_again(carol):
    """A query that has none of its own left, of a number for which there were some."""
    one = carol()
    one.hear({"ahead": 2, "from": 5}, {"ready": 5}, {"ready": 6}, {"bye": True})
    with pytest.raises(CorrelationError, match=r"^query 3: its correlations were made and are gone"):
        one.hear({"query": 3})
