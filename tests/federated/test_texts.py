"""Texts: the head and the last layers travel, what is below stays and has to be the same everywhere."""

import re

import pytest
import torch
from blindformer.federated.client import client_app
from blindformer.federated.examples import OWN, PARTITION, ExampleSource, own_examples
from blindformer.federated.federate import federate, prepare
from blindformer.federated.settings import FederateError, FederateSettings
from blindformer.federated.texts import calibration
from blindformer.models.data import DataError, Dataset, Examples
from blindformer.models.distillation import train_head
from blindformer.models.loading.load import BUCKETS, load
from blindformer.parties.client.evaluation import evaluate
from blindformer.tests.shared.tiny import save_tokenizer, tiny_config

from .conftest import SMALL, Wire


def sentences(count, seed):
    generator = torch.Generator().manual_seed(seed)
    words = ["the", "a", "is", "it", "what", "my", "your"]
    draws = torch.randint(0, len(words), (count, 4), generator=generator)
    texts = [" ".join(words[i] for i in draw) + (" good" if n % 2 else " bad") for n, draw in enumerate(draws)]
    return Examples(texts, [n % 2 for n in range(count)])


@pytest.fixture(scope="module")
def texts():
    return Dataset("words", "text", ("negative", "positive"), sentences(48, 0), sentences(16, 1), sentences(24, 2), {})


def encoder(folder, seed):
    from transformers import BertModel

    torch.manual_seed(seed)
    BertModel(tiny_config(num_hidden_layers=2, initializer_range=0.2)).save_pretrained(folder)
    save_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return encoder(tmp_path_factory.mktemp("base"), 0)


TEXTS = {**{k: v for k, v in SMALL.items() if k not in ("hidden", "layers")}, "rate": 5e-3, "length": 8}


def test_a_classifier_comes_out_that_is_judged_as_it_is(texts, base, tmp_path):
    result = federate(tmp_path / "out", texts, **{**TEXTS, "model": base, "trained": 1, "rounds": 4, "epochs": 4})
    assert result.report["test_accuracy"] >= 0.9
    loaded = load(result.folder)
    assert (loaded.kind, loaded.labels) == ("classifier", {0: "negative", 1: "positive"})
    clear = evaluate(loaded, texts, protocols=("clear",), longest=16).row("approximated", "clear")
    assert clear.accuracy.value >= 0.85
    weights, start = loaded.model.state_dict(), load(base).model.state_dict()
    below = "encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(weights[f"bert.{below}"], start[below])


def test_a_sentence_encoder_with_a_head_is_trained_on(texts, tiny_encoder, tmp_path):
    folder = train_head(tiny_encoder, texts, tmp_path / "head").folder
    result = federate(tmp_path / "out", texts, **{**TEXTS, "model": str(folder), "trained": 1, "rounds": 1})
    weights, start = (load(one).model.state_dict() for one in (result.folder, folder))
    moved = {name for name in start if not torch.equal(weights[name], start[name])}
    assert {"classifier.weight", "classifier.bias"} < moved
    assert not any("embeddings" in name for name in moved)


def test_ranges_are_measured_on_texts_as_long_and_padded_as_private_ones(texts, base):
    """Of short ones alone, a division left its range on longer texts."""
    batches = calibration(load(base), texts.validation, length=8)
    widths = {batch["input_ids"].shape[1] for batch in batches}
    assert widths <= set(BUCKETS)
    assert max(widths) >= 32
    assert sum(len(batch["input_ids"]) for batch in batches) > len(texts.validation)


def test_only_the_head_and_the_last_layers_travel(texts, base, tmp_path):
    federation, _ = prepare(FederateSettings(**{**TEXTS, "model": base, "trained": 1}), texts, tmp_path / "out", None)
    names = set(federation.subject.trained())
    assert {n.split(".")[3] for n in names if ".layer." in n} == {"1"}
    assert {"classifier.weight", "bert.pooler.dense.weight"} <= names
    assert not any("embeddings" in n for n in names)
    with pytest.raises(FederateError, match="trained 3: the model has 2 layers"):
        prepare(FederateSettings(**{**TEXTS, "model": base, "trained": 3}), texts, tmp_path / "out", None)


@pytest.fixture(scope="module")
def adapted(texts, base, tmp_path_factory):
    """Trained by adapters, and what the model was like with adapters still beside its layers."""
    pytest.importorskip("peft")
    settings = {**TEXTS, "model": base, "lora": 2, "rounds": 4, "epochs": 4}
    return federate(tmp_path_factory.mktemp("adapted") / "out", texts, **settings)


def test_adapters_are_merged_into_a_model_like_any_other(adapted, texts, base):
    assert adapted.report["test_accuracy"] >= 0.9
    loaded, start = load(adapted.folder), load(base).model.state_dict()
    weights = loaded.model.state_dict()
    assert not any("lora" in name for name in weights)
    moved = {n for n in start if n.startswith("encoder.") and not torch.equal(weights[f"bert.{n}"], start[n])}
    linear = re.compile(r"encoder\..*(dense|query|key|value)\.weight")
    assert moved == {n for n in start if linear.fullmatch(n)}
    change = weights["bert.encoder.layer.0.output.dense.weight"] - start["encoder.layer.0.output.dense.weight"]
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    clear = evaluate(loaded, texts, protocols=("clear",), longest=16).row("approximated", "clear")
    assert clear.accuracy.value >= 0.85


def test_adapters_and_the_head_alone_travel(adapted, texts, base, tmp_path):
    federation, _ = prepare(FederateSettings(**{**TEXTS, "model": base, "lora": 2}), texts, tmp_path / "out", None)
    names = set(federation.subject.trained())
    assert all("lora_" in n or n.startswith(("classifier.", "bert.pooler.")) for n in names)
    assert len([n for n in names if "lora_" in n]) == 2 * 2 * 6  # A and B, layers, linear layers of each
    assert adapted.report["weights_that_travel"] == sum(p.numel() for p in federation.subject.trained().values())


def test_a_merged_model_answers_as_with_its_adapters(base):
    pytest.importorskip("peft")
    from blindformer.federated.texts import merge, text_model

    loaded = load(base)
    model = text_model(loaded, ("negative", "positive"), FederateSettings(lora=3))
    tokens = dict(loaded.processor(["the good", "a bad"], return_tensors="pt"))
    with torch.no_grad():
        untouched = model(**tokens).logits
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
        adapted = model(**tokens).logits
        merge(model)
        assert (adapted - untouched).abs().max() > 1e-2
        assert torch.allclose(model(**tokens).logits, adapted, atol=1e-4)


def test_adapters_where_they_cannot_be(texts, data, base, tmp_path):
    with pytest.raises(FederateError, match="lora adapts all layers, trained names some to train whole"):
        FederateSettings(lora=2, trained=1)
    with pytest.raises(FederateError, match="begins from nothing: leave lora out"):
        prepare(FederateSettings(**{**SMALL, "lora": 2}), data, tmp_path / "out", None)


def test_another_base_model_is_refused_and_named(texts, base, tmp_path):
    given = {**TEXTS, "model": base, "trained": 1, "rounds": 1, "epochs": 1}
    settings = FederateSettings(**{**given, "model": encoder(tmp_path / "other", 1)})
    federation, _ = prepare(FederateSettings(**given), texts, tmp_path / "out", None)
    (only,) = federation.run(Wire(client_app(ExampleSource(texts)), settings))
    assert only.clients == 0
    assert all("has other weights than the server's" in why for why in only.lost.values())


def test_a_client_with_its_own_table(texts, base, tmp_path):
    own, odd = tmp_path / "own.csv", tmp_path / "odd.csv"
    own.write_text("said,mood\nit is good,positive\nit is bad,Negative\n")
    odd.write_text("text,label\nit is good,fine\nit is bad,poor\n")
    settings = {**TEXTS, "model": base, "clients": 3, "rounds": 1, "epochs": 1, "trained": 1}
    nodes = {1: {PARTITION: 0}, 2: {OWN: str(own), "name": "ward", "text": "said", "label": "mood"},
             3: {OWN: str(odd), "name": "clinic"}}  # fmt: skip
    result = federate(tmp_path / "out", texts, nodes=nodes, **settings)
    assert list(result.rounds[0].lost) == ["clinic"]
    assert "label 'fine' is none of the server's: negative, positive" in result.rounds[0].lost["clinic"]
    with pytest.raises(DataError, match="is no folder"):
        own_examples(own, ("a",), 8)
