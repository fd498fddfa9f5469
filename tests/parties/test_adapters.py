"""One base and two adapters on it: each is asked by its name, and answered by its own weights alone."""

import re
from typing import Any

import numpy as np
import openai
import pytest
import torch
from blindformer.models.artifacts import (
    ArtifactError,
    adapter_place,
    load_client,
    load_server,
    load_with_adapters,
)
from blindformer.models.building import compile_beside, compile_folder
from blindformer.models.generation.folder import compile_chat_folder, compile_seq2seq_folder
from blindformer.models.loading.load import load
from blindformer.parties.client.client import Client, LocalClient, open_here
from blindformer.parties.client.local import find_local
from blindformer.parties.client.pipeline import pipeline
from blindformer.parties.session.masked_weights import serve_parts
from blindformer.tests.parties.conftest import TEXTS
from blindformer.tests.parties.gateway.conftest import running
from blindformer.tests.parties.service.helped import Helped
from blindformer.tests.shared.adapters import save_adapter
from blindformer.tests.shared.deployment import Deployment, eventually
from blindformer.tests.shared.speech import tiny_whisper
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama, tiny_marian

peft = pytest.importorskip("peft")
TEXT = "is it good ?"
LABELS = {"law": 2, "moods": 3}
VOICES = {"pirate": 1, "poet": 2}


@pytest.fixture(scope="module")
def classifiers(tiny_features, tmp_path_factory):
    """A compiled encoder, with two classifiers as adapters on it."""
    place = tmp_path_factory.mktemp("adapters")
    adapters = {
        name: save_adapter(tiny_features, place / name, "SEQ_CLS", seed=count, labels=count)
        for name, count in LABELS.items()
    }

    def make(loaded, folder, **common):
        return compile_folder(loaded, folder, lengths=[16], calibration=TEXTS, weights="public", **common)

    return compile_beside(tiny_features, load(tiny_features), adapters, place / "compiled", make)


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """A compiled language model, with two adapters on it."""
    place = tmp_path_factory.mktemp("voices")
    base = tiny_llama(place / "base", TEMPLATE)
    adapters = {
        name: save_adapter(base, place / name, seed=seed, target_modules=["q_proj", "v_proj"])
        for name, seed in VOICES.items()
    }

    def make(loaded, folder, **common):
        return compile_chat_folder(loaded, folder, slots=48, sizes=(1, 8), weights="public", **common)

    return compile_beside(base, load(base), adapters, place / "tiny", make)


def clear(folder, adapter=""):
    """The reference's logits."""
    with LocalClient(find_local("clear"), folder, adapter=adapter) as client:
        return client.query(TEXT)


def test_each_adapter_is_answered_as_its_reference_by_one_server(classifiers):
    with Client("local", folder=classifiers) as base:
        base.connect()
        services = base.parties.services
        answers = {}
        for name, labels in LABELS.items():
            with Client("local", folder=classifiers, adapter=name, beside=base) as client:
                answers[name] = client.query(TEXT)
                assert client.parties.services is services
            wanted = clear(classifiers, name).outputs["logits"]
            assert answers[name].outputs["logits"].shape == (1, labels)
            torch.testing.assert_close(answers[name].outputs["logits"], wanted, atol=2e-3, rtol=0)
        hidden = base.query(TEXT).outputs["last_hidden_state"]
    torch.testing.assert_close(hidden, clear(classifiers).outputs["last_hidden_state"], atol=2e-3, rtol=0)


def test_the_base_is_one_tensor_for_all(classifiers):
    parts = load_with_adapters(load_server, classifiers, "server", {})
    assert list(parts) == ["", "law", "moods"]
    base, *others = (part.for_length() for part in parts.values())
    assert base.weights == {}
    opened = {id(value) for value in base.constants.values()}
    for part in others:
        # Of each open factor, the base's own tensor.
        factors = [value for name, value in part.constants.items() if name in part.program.factors()]
        assert factors
        assert {id(value) for value in factors} <= opened
        assert max(value.numel() for value in part.weights.values()) < max(value.numel() for value in factors)


def test_masks_are_each_adapters_own(classifiers):
    """Weights of one name and shape in two adapters are masked independently: what a client has of one says nothing of
    the other, and no cached file of one is taken for the other's."""
    parts = load_with_adapters(load_server, classifiers, "server", {})
    served = serve_parts([item for part in parts.values() for item in part.values()], bytes(32))
    law, moods = (served[parts[name].for_length().program.hash()].masked for name in LABELS)
    shapes = {line.name: line.shape for line in law.catalogue.lines}
    both = [line.name for line in moods.catalogue.lines if shapes.get(line.name) == line.shape]
    assert both
    for name in both:
        assert law.keys[name] != moods.keys[name]
        first, second = (torch.frombuffer(masked.packed(name), dtype=torch.int64) for masked in (law, moods))
        high = ((first - second) >> 40).unique()
        assert len(high) > 0.9 * len(first)  # uniform, and not the small difference of two weights
    assert not {line.id for line in law.catalogue.lines} & {line.id for line in moods.catalogue.lines}


def test_a_program_names_one_adapter_alone(classifiers, tmp_path):
    inside = classifiers / "server" / "adapters" / "law"
    with pytest.raises(ArtifactError, match="adapter again: has the program of adapter law"):
        load_with_adapters(load_server, classifiers, "server", {"again": inside})
    with pytest.raises(ArtifactError, match=r"adapter law: is in .*server, too"):
        load_with_adapters(load_server, classifiers, "server", {"law": inside})
    with pytest.raises(ArtifactError, match="holds no adapter 'tax'; it has law, moods"):
        adapter_place(classifiers, "tax")
    hashes = {load_client(adapter_place(classifiers, name)).for_length().program.hash() for name in ("", *LABELS)}
    assert len(hashes) == 3


def test_an_adapter_that_was_compiled_elsewhere_is_served_by_name_and_else_refused(
    classifiers, tiny_features, tmp_path, refused
):
    adapter = save_adapter(tiny_features, tmp_path / "tax", "SEQ_CLS", seed=4, labels=4)
    tax = compile_folder(load(tiny_features, adapter), tmp_path / "compiled", lengths=[16], calibration=TEXTS)
    with Deployment(tmp_path, classifiers) as site:
        line = refused("query", tax / "client", TEXT, *site.words())
        assert re.search(r"server: has program \w+..., this side has", line)
        assert not any(name in line for name in LABELS)  # whoever asks learns no names of others
    with Deployment(tmp_path, classifiers, {"adapters.tax": tax / "server"}) as site:
        with site.client(folder=tax) as client:
            assert client.query(TEXT).outputs["logits"].shape == (1, 4)
        with site.client(adapter="law") as client:
            assert client.query(TEXT).outputs["logits"].shape == (1, 2)


@pytest.fixture(scope="module")
def helped(classifiers, tmp_path_factory):
    with Helped(tmp_path_factory.mktemp("helped"), classifiers) as site:
        yield site


@pytest.mark.parametrize("adapter", ["", *LABELS])
def test_two_servers_serve_base_and_adapters_to_a_client_that_only_splits_and_adds(classifiers, helped, adapter):
    with helped.client(adapter=adapter) as client:
        outputs = client.query(TEXT).outputs
    for name, wanted in clear(classifiers, adapter).outputs.items():
        torch.testing.assert_close(outputs[name], wanted, atol=2e-3, rtol=0)


@pytest.mark.parametrize("tiny", [tiny_marian, tiny_whisper])
def test_a_model_that_writes_answers_with_an_adapter_as_its_merged_self(tiny, tmp_path):
    """By two parties, and by the base beside it, whose answer is another."""
    own = tiny(tmp_path / "own")
    style = save_adapter(own, tmp_path / "style", "SEQ_2_SEQ_LM", seed=3, target_modules=["q_proj", "v_proj"])
    item = "hello" if tiny is tiny_marian else np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)

    def make(loaded, folder, **common):
        return compile_seq2seq_folder(loaded, folder, slots=8, sizes=(1,), weights="public", **common)

    folder = compile_beside(own, load(own), {"style": style}, tmp_path / "compiled", make)
    with pipeline(model=folder, adapter="style") as write, pipeline(model=folder, protocol="clear") as base:
        assert write.part.name == "own+style"
        answer, plain = write(item), base(item)
        assert not any("lora" in name for name in write.part.for_length().program.all_public())
    assert answer != plain
    merged = load(own)
    merged.model = peft.PeftModel.from_pretrained(merged.model, style).merge_and_unload().eval()
    with pipeline(model=merged, protocol="clear", generation={"slots": 8, "sizes": (1,)}) as alone:
        assert alone(item) == answer


def test_two_voices_of_one_base_answer_as_their_references(voices, tmp_path):
    """Through the OpenAI API, with the adapter's name as the model's."""
    wanted = {}
    for name in ("", *VOICES):
        with open_here(find_local("clear"), voices, adapter=name) as client:
            wanted[name or "tiny"] = client.conversation().say("who are you", max_new_tokens=6).text
    assert len(set(wanted.values())) == 3
    with running(tmp_path / "key", {"tiny": {"folder": voices, "server": "local"}}) as gateway:
        eventually(lambda: gateway.http.get("/health").status_code == 200, "all parties have met")
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as client:
            assert {model.id for model in client.models.list()} == set(wanted)
            question: Any = [{"role": "user", "content": "who are you"}]
            for name, text in wanted.items():
                reply = client.chat.completions.create(model=name, messages=question, max_tokens=6, temperature=0)
                assert reply.choices[0].message.content == text


def test_a_pipeline_takes_an_adapters_folder_or_its_name(classifiers, tiny_features, tmp_path, monkeypatch):
    adapter = save_adapter(tiny_features, tmp_path / "law", "SEQ_CLS", seed=2, labels=2)
    monkeypatch.setenv("HOME", str(tmp_path))  # whose cache it is
    common = {"protocol": "clear"}
    with pipeline(model=tiny_features, adapter=adapter, lengths=[16], calibration=list(TEXTS), **common) as classify:
        assert classify.task == "text-classification"
        alone = classify.query(TEXT).outputs["logits"]
    with pipeline(model=classifiers, adapter="law", **common) as classify:
        torch.testing.assert_close(classify.query(TEXT).outputs["logits"], alone, atol=1e-3, rtol=0)
