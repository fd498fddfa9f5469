"""Rotations from few keys: chains of rotations, and rotations made of others."""

import pytest
from blindformer.protocols.ckks.rotation_keys import MOST, SLACK, chain, compose, hops
from hypothesis import given
from hypothesis import strategies as st

SLOTS = 64
rotations = st.sets(st.integers(-SLOTS, 2 * SLOTS), max_size=20)


@given(rotations)
def test_a_chain_reaches_every_rotation_from_one_that_came_before(wanted):
    found = chain(wanted, SLOTS)
    assert set(found) == {r % SLOTS for r in wanted} - {0}
    reached = {0}
    for rotation, before in found.items():
        assert before in reached
        reached.add(rotation)


def test_evenly_spaced_rotations_have_one_step():
    assert hops(chain(range(0, SLOTS, 8), SLOTS), SLOTS) == {8}


def test_rotations_both_ways_have_two():
    assert hops(chain([-12, -8, -4, 4, 8], SLOTS), SLOTS) == {4, SLOTS - 4}


work = st.dictionaries(st.integers(1, SLOTS - 1), st.floats(0.1, 100), max_size=12)


@given(work)
def test_what_a_rotation_is_made_of_adds_up_to_it(work):
    for rotation, made in compose(work, SLOTS).items():
        assert sum(made) % SLOTS == rotation
        assert 1 <= len(made) <= MOST


@given(work)
def test_fewer_keys_cost_no_more_than_was_allowed(work):
    made = compose(work, SLOTS)
    assert sum(amount * len(made[r]) for r, amount in work.items()) <= (1 + SLACK) * sum(work.values()) * (1 + 1e-9)


def test_a_rotation_that_is_rare_has_no_key():
    made = compose({1: 100.0, 2: 1.0, 4: 1.0}, SLOTS)
    assert {key for keys in made.values() for key in keys} == {1}


def test_a_rotation_that_is_made_often_keeps_its_key():
    assert compose({1: 10.0, 2: 100.0}, SLOTS)[2] == (2,)


@pytest.mark.parametrize("slots", [SLOTS, 1 << 14])
def test_nothing_to_rotate_needs_no_key(slots):
    assert compose({}, slots) == {}
    assert chain([0, slots], slots) == {}
