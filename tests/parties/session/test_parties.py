"""Who takes part: which parties form a session, who owns which value, and who reads which part of the model."""

from __future__ import annotations

import pytest
from blindformer.parties.session.parties import Parties, PartiesError, numbered
from blindformer.parties.session.rendezvous_n import load_model

TWO, FOUR = ("alice", "bob"), ("alice", "bob", "carol", "dave")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((("alice",),), "parties: 1 are named, and a session takes 2 to 64"),
        ((("alice", "bob", "alice"),), "parties: alice is named twice; every party has a name and a rank of its own"),
        ((("alice", "dealer"),), "parties: dealer is the dealer's name"),
        ((TWO, {"input_ids": "mallory"}), r"^input_ids: mallory is no party; choose one of alice, bob$"),
        ((TWO, {}, "mallory"), r"^outputs: mallory is no party"),
    ],
)
def test_parties_that_cannot_form_a_session(arguments, line):
    with pytest.raises(PartiesError, match=line):
        Parties(*arguments)


def test_every_value_of_the_data_has_the_owner_of_its_inputs(classifier):
    program = classifier.compiled.program
    with pytest.raises(PartiesError, match=r"^pixels: is no input of this model; it takes "):
        Parties(TWO, {"pixels": "alice"}).sources(program)
    carols = Parties(FOUR[:3], dict.fromkeys(program.inputs, "carol"))
    assert set(carols.sources(program).values()) == {2}


def test_who_needs_the_clients_part_of_the_model_reads_it(classifier):
    """Carol is named for one input; the others are bob's, since nobody is named for them. Dave only computes."""
    folder, parties = classifier.folder, Parties(FOUR, {"attention_mask": "carol"})
    assert [load_model(folder, parties, rank)[0] is not None for rank in range(4)] == [False, True, True, False]
    assert load_model(folder, Parties(TWO, recipient="alice"), 0)[0] is not None


def test_the_hash_tells_other_parties_apart():
    assert len({numbered(2).hash(), numbered(3).hash(), Parties(TWO, data="alice").hash()}) == 3
