"""What bounds clients' keys on a server's disk, without a network."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
from blindformer.parties.service.encrypted import KeyStore
from blindformer.parties.session.messages import SlotsBusy
from blindformer.protocols.ckks.facts import CircuitNeeds, most
from blindformer.protocols.ckks.parameters import insecure_parameters

FACTS = CircuitNeeds("ab" * 32, insecure_parameters(1024, 3), 1, (3,), {0: 0}, {1: 3})
SIZE = most(FACTS.key_items())


@pytest.fixture
def now():
    return SimpleNamespace(time=0.0)


@pytest.fixture
def store(tmp_path, now):
    gone, computing = [], set()
    key_store = KeyStore(tmp_path, most_bytes=3 * SIZE, most_sets=10, each=2, seconds=60, forgotten=gone.append,
                         running=computing.__contains__, clock=lambda: now.time)  # fmt: skip
    key_store.gone, key_store.computing = gone, computing
    return key_store


def whole(store, owner):
    item = store.reserve(7, owner, "AB", FACTS)
    item.folder.mkdir()
    item.taking = None
    return item


def test_keys_that_nobody_uses_expire(store, now):
    item = whole(store, "a")
    now.time = 50
    assert store.find("a", FACTS, item.name) is item
    now.time = 100
    store.find("a", FACTS, item.name)
    now.time = 161
    assert store.find("a", FACTS, item.name) is None
    assert store.gone == [item.name]
    assert not item.folder.exists()


def test_what_was_used_least_lately_makes_room(store, now):
    items = []
    for owner in "abc":
        now.time += 1
        items.append(whole(store, owner))
    now.time += 1
    store.find("a", FACTS, items[0].name)
    whole(store, "d")
    assert store.gone == [items[1].name]
    assert store.bytes <= 3 * SIZE


def test_one_certificate_displaces_its_own_keys(store, now):
    items = []
    for _ in range(3):
        now.time += 1
        items.append(whole(store, "a"))
    assert store.gone == [items[0].name]


def test_keys_in_use_stay_and_the_next_is_told_to_wait(store):
    items = [whole(store, owner) for owner in "abc"]
    for number, item in enumerate(items):
        item.users = {number}
        store.computing.add(number)
    with pytest.raises(SlotsBusy, match="no room for more keys") as caught:
        store.reserve(7, "d", "AB", FACTS)
    assert (caught.value.retry_after > 0, store.gone) == (True, [])
    store.computing.clear()
    whole(store, "d")
    assert store.gone == [items[0].name]


def test_keys_are_found_by_their_owner_alone_for_their_circuit_and_when_they_are_whole(store):
    item = store.reserve(7, "a", "AB", FACTS)
    assert store.find("a", FACTS, item.name) is None
    item.taking = None
    assert store.find("a", FACTS, item.name) is item
    assert store.find("b", FACTS, item.name) is None
    assert store.find("a", replace(FACTS, program="cd" * 32), item.name) is None


def test_keys_whose_upload_is_cut_leave_nothing(store, now):
    """They are reserved as long as they come, however slowly; who sends them has them until it is gone."""
    item, kept = store.reserve(7, "a", "AB", FACTS), whole(store, "a")
    item.folder.mkdir()
    kept.users = {7}
    now.time = 59
    assert store.bytes == 2 * SIZE
    store.left(7)
    assert (item.folder.exists(), store.bytes, kept.users) == (False, SIZE, set())
