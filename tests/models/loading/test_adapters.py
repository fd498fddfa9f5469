"""Adapters: what peft saved is put beside the layers of its base, and nothing of it is open."""

import json
import re
import shutil

import pytest
import torch
from blindformer.models.compile import compile
from blindformer.models.loading.adapters import AdapterWarning, parse_adapters
from blindformer.models.loading.huggingface import LoadError
from blindformer.models.loading.load import load
from blindformer.models.weight_owners import WeightOwners, WeightsError
from blindformer.tests.models.conftest import clear
from blindformer.tests.shared.adapters import save_adapter

peft = pytest.importorskip("peft")
TEXTS = ["blue sky over the hill", "a cat sat on the mat", "the dog is glad"]


def merged(base, adapter, cls):
    """peft's own answer: W + B A in the place of W."""
    return peft.PeftModel.from_pretrained(cls.from_pretrained(base, num_labels=3), adapter).merge_and_unload().eval()


@pytest.mark.parametrize("targets", [["query", "value"], "all-linear"])
def test_a_classifier_on_an_encoder_without_a_head_answers_as_the_merged_model(tiny_features, tmp_path, targets):
    from transformers import BertForSequenceClassification

    adapter = save_adapter(tiny_features, tmp_path / "moods", "SEQ_CLS", labels=3, target_modules=targets)
    loaded = load(tiny_features, adapter)
    assert (loaded.kind, loaded.name, len(loaded.labels)) == ("classifier", f"{tiny_features.name}+moods", 3)
    batch = loaded.examples(TEXTS, 16)
    with torch.no_grad():
        wanted = merged(tiny_features, adapter, BertForSequenceClassification)(**batch[0]).logits
        torch.testing.assert_close(loaded.model(**batch[0]).logits, wanted, atol=1e-5, rtol=0)
    compiled = compile(loaded, batch)
    torch.testing.assert_close(clear(compiled, batch[0])["logits"], wanted, atol=5e-2, rtol=0)
    opened = compiled.program.all_public()
    assert any("base_layer" in name for name in opened)
    assert not any("lora" in name or "classifier" in name for name in opened)
    # Nothing of the size of W is private: the branch stays of low rank.
    rank, width = 4, loaded.model.config.hidden_size
    for rows, columns in compiled.program.weight_shapes().values():
        assert min(rows, columns) <= 3 * rank < width


def test_a_language_model_keeps_its_head_and_a_model_without_an_adapter_its_default(tiny_causal, tmp_path):
    adapter = save_adapter(tiny_causal, tmp_path / "pirate", target_modules=["c_attn"], fan_in_fan_out=True)
    loaded = load(tiny_causal, adapter)
    assert loaded.kind == "causal"
    assert loaded.weights() == WeightOwners(private=("*lora_*",), rest="public")
    assert loaded.weights("public") == loaded.weights()  # nobody opens an adapter by accident
    assert load(tiny_causal).weights() == WeightOwners()


def test_labels_are_those_beside_the_adapter(tiny_features, tmp_path):
    adapter = save_adapter(tiny_features, tmp_path / "moods", "SEQ_CLS", labels=2)
    config = json.loads((tiny_features / "config.json").read_text()) | {"id2label": {"0": "calm", "1": "cross"}}
    (adapter / "config.json").write_text(json.dumps(config))
    assert load(tiny_features, adapter).labels == {0: "calm", 1: "cross"}


def test_an_adapter_of_the_embedding_block_is_not_released(tiny_causal, tmp_path):
    words = save_adapter(tiny_causal, tmp_path / "words", target_modules=["wte"])
    loaded = load(tiny_causal, words)
    batch = loaded.examples(TEXTS, 8)
    with pytest.raises(WeightsError, match=r"lora_embedding_\w.*clients would get it .* with --embedding private"):
        compile(loaded, batch)
    hidden = compile(loaded, batch, embedding="private").program
    assert not any("lora" in name for name in (*hidden.all_released(), *hidden.all_public()))


def edit(adapter, **fields):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_what_does_not_fit_is_one_line(tiny_features, tiny_classifier, tiny_causal, tmp_path):
    def why(base, folder):
        with pytest.raises(LoadError) as error:
            load(base, folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    moods = save_adapter(tiny_features, tmp_path / "moods", "SEQ_CLS", labels=3)
    assert re.search(r"moods: does not fit .*tiny-causal.*; it was trained on .*tiny-features", why(tiny_causal, moods))
    assert "adapter_config.json: cannot be read" in why(tiny_features, tiny_classifier)
    edit(moods, use_dora=True)
    assert "kind DoRA; use LoRA" in why(tiny_features, moods)
    prompts = save_adapter(tiny_causal, tmp_path / "prompts", kind=peft.PromptTuningConfig, num_virtual_tokens=2)
    assert "kind PROMPT_TUNING; use LoRA" in why(tiny_causal, prompts)
    wide = save_adapter(tiny_features, tmp_path / "wide", "SEQ_CLS", labels=3)
    edit(wide, r=8)
    assert "does not fit" in why(tiny_features, wide)


def test_a_base_of_another_name_is_one_warning(tiny_features, tmp_path, recwarn):
    renamed = shutil.copytree(tiny_features, tmp_path / "renamed")
    moods = save_adapter(tiny_features, tmp_path / "moods", "SEQ_CLS", labels=3)

    def warned(base):
        recwarn.clear()
        load(base, moods)
        return [str(one.message) for one in recwarn if one.category is AdapterWarning]

    assert warned(tiny_features) == []
    (line,) = warned(renamed)
    assert line == f"{moods}: was trained on {tiny_features}, and is put on renamed; check that this is the same model"
    edit(moods, base_model_name_or_path="somebody/Renamed.Q4_K_M")
    assert warned(renamed) == []
    edit(moods, base_model_name_or_path=None)
    assert warned(renamed) == []


def test_names_of_adapters_are_checked(tmp_path):
    assert parse_adapters([f"law={tmp_path}"]) == {"law": tmp_path}
    for given, why in (
        (["law"], "give NAME=FOLDER"),
        ([f"a/b={tmp_path}"], "no slash"),
        ([f"law={tmp_path}"] * 2, "given twice"),
        (["law=nowhere"], "adapter law=nowhere: there is no such folder"),
    ):
        with pytest.raises(LoadError, match=why):
            parse_adapters(given)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_parameters_of_the_base_itself_are_refused_and_never_opened(tiny_features, tmp_path, bias):
    adapter = save_adapter(tiny_features, tmp_path / "moods", "SEQ_CLS", labels=3, bias=bias)
    with pytest.raises(LoadError, match=r"contains base parameters \(.*bias\).*bias='none'"):
        load(tiny_features, adapter)
