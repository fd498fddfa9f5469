"""Who is who among N parties, and what each needs of the model."""

import importlib.util

import pytest

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.models.artifacts import save
from blindformer.models.loading.load import load
from blindformer.parties.local.compare import compile_text
from blindformer.parties.session.joining import load_held
from blindformer.parties.session.parties import Parties, PartiesError, numbered

TEXTS = ("how is my password ?", "not good , bad !")


@pytest.fixture(scope="module")
def loaded(tiny_classifier):
    return load(tiny_classifier)


@pytest.fixture(scope="module")
def compiled(loaded):
    return compile_text(loaded, 16, texts=[*TEXTS, "the password is lost .", "what a good red !"])


@pytest.fixture(scope="module")
def folder(compiled, tmp_path_factory):
    return save(compiled, tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("alice",), "parties: 1 are named, and a session takes 2 to 64"),
        (("alice", "bob", "alice"), "parties: alice is named twice; every party has a name and a rank of its own"),
        (("alice", "dealer"), "parties: dealer is the dealer's name"),
    ],
)
def test_parties_that_cannot_form_a_session(names, line):
    with pytest.raises(PartiesError, match=line):
        Parties(names)


def test_owners_and_the_recipient_are_parties():
    with pytest.raises(PartiesError, match=r"^input_ids: mallory is no party; choose one of alice, bob$"):
        Parties(("alice", "bob"), {"input_ids": "mallory"})
    with pytest.raises(PartiesError, match=r"^outputs: mallory is no party"):
        Parties(("alice", "bob"), recipient="mallory")


def test_every_value_of_the_data_has_the_owner_of_its_inputs(compiled):
    with pytest.raises(PartiesError, match=r"^pixels: is no input of this model; it takes "):
        Parties(("alice", "bob"), {"pixels": "alice"}).sources(compiled.program)
    carols = Parties(("alice", "bob", "carol"), dict.fromkeys(compiled.program.inputs, "carol"))
    assert set(carols.sources(compiled.program).values()) == {2}


def test_who_needs_the_clients_part_of_the_model_reads_it(folder):
    """Carol is named for one input; the others are bob's, since nobody is named for them. Dave only computes."""
    parties = Parties(("alice", "bob", "carol", "dave"), {"attention_mask": "carol"})
    assert [load_held(folder, parties, rank)[0] is not None for rank in range(4)] == [False, True, True, False]
    alone = Parties(("alice", "bob"), recipient="alice")
    assert load_held(folder, alone, 0)[0] is not None


def test_a_rosters_hash_tells_other_numbers_of_parties_apart():
    assert numbered(2).hash() != numbered(3).hash()
    assert numbered(2).hash() != Parties(("alice", "bob"), data="alice").hash()
