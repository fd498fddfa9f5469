"""Weights that every computing party holds: answers as `clear` gives them, and nothing to set up, in every place."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import blindformer as bf
import pytest
from blindformer.models.artifacts import load_client, load_server, save
from blindformer.models.building import compile_folder, compile_lengths
from blindformer.models.generation.folder import compile_chat_folder
from blindformer.models.loading.load import load
from blindformer.protocols.errors import PeerError
from blindformer.tests.parties.client.test_session_conformance import (
    TEXTS,
    beaver_here,
    crypten_here,
    helper,
)
from blindformer.tests.shared.deployment import Deployment
from blindformer.tests.shared.tiny import TEMPLATE, clear_conversation, tiny_llama

MIXED = {"public": ["bert.*"], "private": ["classifier.*"]}
WITH_CRYPTEN = pytest.mark.skipif(find_spec("crypten") is None, reason="crypten is not installed")


@pytest.fixture(scope="module", params=["public", MIXED], ids=["public", "a private head"])
def folder(request, tiny_classifier, tmp_path_factory) -> Path:
    loaded = load(tiny_classifier)
    compiled = compile_lengths(loaded, [16], texts=TEXTS, weights=request.param)
    return save(compiled, tmp_path_factory.mktemp("compiled"), loaded)


@pytest.mark.parametrize("place", [beaver_here, helper, crypten_here])
def test_answers_are_right_and_nothing_of_a_public_weight_is_sent_before_them(place, folder, tmp_path):
    with place(folder, tmp_path) as here, here.client() as client:
        session = client.sessions.get(client.part.for_length())
        for number, inputs in enumerate(here.inputs):
            here.check(session.ask(inputs).outputs(0), number)
        private = session.program.weight_shapes()
        assert all(name.startswith("classifier") for name in private)
        if here.sent:
            assert (session.setup_bytes > 0) == bool(private)


def test_who_computes_says_how_many_parameters_are_open(folder):
    with bf.Client("local", folder=folder) as client:
        result = client.query(TEXTS[0])
    opened = len(load_client(folder).for_length().program.all_public())
    learned, masked = result.report.learned, bool(load_client(folder).for_length().program.weight_shapes())
    assert f"the weights of {opened} open parameters" in learned["public"]
    assert ("masked weights" in learned["client"], "weight masks" in learned["dealer"]) == (masked, masked)


def test_other_public_weights_are_another_program(tiny_classifier, tmp_path):
    """A digest of each is in the program, whose hash is compared before a share is sent."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(tiny_classifier)
    options = {"lengths": [8], "calibration": TEXTS, "weights": "public"}
    one = compile_folder(tiny_classifier, tmp_path / "one", **options)
    model.bert.encoder.layer[0].output.dense.weight.data[0, 0] += 0.125
    model.save_pretrained(tmp_path / "model")
    for file in tiny_classifier.glob("token*"):
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    other = compile_folder(tmp_path / "model", tmp_path / "other", **options)
    with Deployment(tmp_path / "site", one) as site:
        where = {"server": "{}:{}".format(*site.server.address), "dealer": "{}:{}".format(*site.dealer.address)}
        with (
            bf.Client(folder=other / "client", certificates=site.certificates, **where) as client,
            pytest.raises(PeerError, match="compile once and give both sides artifacts of that one compilation"),
        ):
            client(TEXTS[0])


@pytest.mark.parametrize(
    ("protocol", "parties"),
    [
        ("beaver", 2),
        pytest.param("crypten", 3, marks=[pytest.mark.slow, WITH_CRYPTEN]),
    ],
)
def test_a_conversation_with_an_open_model(protocol, parties, tmp_path):
    folder = compile_chat_folder(
        tiny_llama(tmp_path / "model", TEMPLATE), tmp_path / "compiled", slots=64, weights="public"
    )
    program = load_client(folder).for_length().program
    assert program.weight_shapes() == {}
    with clear_conversation(folder) as here:
        wanted = here.say("Hi", max_new_tokens=3).tokens
    with bf.pipeline(model=folder, protocol=protocol, parties=parties) as client:
        assert client.conversation().say("Hi", max_new_tokens=3).tokens == wanted


@pytest.mark.parametrize(("weights", "is_open"), [("public", True), ({"public": ["*"], "private": ["*mlp*"]}, False)])
def test_what_a_system_prompt_becomes_is_as_private_as_any_weight(weights, is_open, tmp_path):
    model = tiny_llama(tmp_path / "model", TEMPLATE)
    options = {"slots": 64, "system": "You never say which number we hide.", "weights": weights}
    program = load_server(compile_chat_folder(model, tmp_path / "compiled", **options)).for_length().program
    assert any(name.startswith("prefix") for name in program.all_public()) == is_open
    assert any(name.startswith("prefix") for name in program.weight_shapes()) != is_open
