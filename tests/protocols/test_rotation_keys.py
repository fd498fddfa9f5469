"""Rotations from few keys: chains of rotations, and rotations made of others."""

import pytest
from blindformer.protocols.ckks.rotation_keys import MOST, SLACK, chain, compose, hops
from hypothesis import given
from hypothesis import strategies as st

SLOTS = 64
rotations = st.sets(st.integers(-SLOTS, 2 * SLOTS), max_size=20)


@given(rotations)
def test_a_chain_reaches_every_rotation_from_one_that_came_before(wanted):
    chained = chain(wanted, SLOTS)
    assert set(chained) == {r % SLOTS for r in wanted} - {0}
    reached = {0}
    for rotation, before in chained.items():
        assert before in reached
        reached.add(rotation)


@pytest.mark.parametrize(
    ("wanted", "steps"), [(range(0, SLOTS, 8), {8}), ([-12, -8, -4, 4, 8], {4, SLOTS - 4}), ([], set())]
)
def test_evenly_spaced_rotations_have_a_step_each_way(wanted, steps):
    assert hops(chain(wanted, SLOTS), SLOTS) == steps


work = st.dictionaries(st.integers(1, SLOTS - 1), st.floats(0.1, 100), max_size=12)


@given(work)
def test_what_a_rotation_is_made_of_adds_up_to_it_at_no_more_than_was_allowed(work):
    composed = compose(work, SLOTS)
    for rotation, steps in composed.items():
        assert sum(steps) % SLOTS == rotation
        assert 1 <= len(steps) <= MOST
    assert sum(amount * len(composed[r]) for r, amount in work.items()) <= (1 + SLACK) * sum(work.values()) * (1 + 1e-9)


def test_only_a_rotation_that_is_made_often_keeps_its_key():
    composed = compose({1: 100.0, 2: 1.0, 4: 1.0}, SLOTS)
    assert {key for keys in composed.values() for key in keys} == {1}
    assert compose({1: 10.0, 2: 100.0}, SLOTS)[2] == (2,)


@pytest.mark.parametrize("slots", [SLOTS, 1 << 14])
def test_nothing_to_rotate_needs_no_key(slots):
    assert compose({}, slots) == {}
    assert chain([0, slots], slots) == {}
