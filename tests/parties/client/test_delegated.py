"""Public models by name, folder and module: commands and Python, with a server and a dealer of this machine."""

from __future__ import annotations

import json
import os
import signal

import blindformer as bf
import pytest
import torch
from blindformer.models.delegated import is_delegated
from blindformer.models.delegated.building import delegate_folder
from blindformer.models.loading.load import load
from blindformer.parties.cli.app import app
from blindformer.protocols.errors import BlindformerError
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama, tiny_marian
from typer.testing import CliRunner

TEXTS = ["nobody reads this", "where is my parcel"]


@pytest.fixture(autouse=True)
def at_home(tmp_path_factory, monkeypatch):
    """Where models are prepared to."""
    monkeypatch.setenv("HOME", str(tmp_path_factory.getbasetemp() / "delegated-home"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("llama"), TEMPLATE)


def command(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    if isinstance(result.exception, BlindformerError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def test_run_takes_public_weights_and_is_as_exact_as_float32(tiny_classifier):
    shown = json.loads(command("run", tiny_classifier, *TEXTS, "--weights", "public", "--format", "json"))
    assert shown["protocol"] == "delegated"
    assert shown["cosine_min"] > 0.999999
    assert {"server", "dealer", "client", "proven"} <= shown["learned"].keys()


def test_what_is_for_compiled_models_is_refused_in_a_line(tiny_classifier):
    refusals = {"--outputs logits": "--outputs: is for compiled models", "--plan he": "plan he: a public model runs as"}
    for option, words in refusals.items():
        with pytest.raises(BlindformerError, match=f"^{words}"):
            command("run", tiny_classifier, TEXTS[0], "--weights", "public", *option.split())


def test_plan_fast_takes_a_quarter_less_traffic(tiny_classifier):
    costs = {}
    for plan in ("faithful", "fast"):
        public = ["--weights", "public", "--plan", plan, "--format", "json"]
        shown = json.loads(command("run", tiny_classifier, TEXTS[0], *public))
        assert shown["plan"] == plan
        costs[plan] = [shown[name] for name in ("online_bytes", "offline_bytes")]
    assert [4 * number for number in costs["fast"]] == [3 * number for number in costs["faithful"]]


def test_a_pipeline_gives_what_transformers_gives(tiny_classifier):
    from transformers import pipeline

    wanted = pipeline("text-classification", model=str(tiny_classifier))(TEXTS)
    with bf.pipeline("text-classification", model=tiny_classifier, weights="public") as classify:
        got = classify(TEXTS)
    assert [one["label"] for one in got] == [one["label"] for one in wanted]
    assert [one["score"] for one in got] == pytest.approx([one["score"] for one in wanted], abs=1e-3)


def test_a_compiled_folder_is_known_by_every_command(tiny_classifier, tmp_path):
    folder = tmp_path / "open"
    assert str(folder / "dealer") in command("compile", tiny_classifier, "--weights", "public", "--out", folder)
    assert all(is_delegated(folder / part) for part in ("", "server", "dealer", "client"))
    assert json.loads(command("inspect", folder, "--format", "json"))["groups"]
    shown = json.loads(command("query", folder, *TEXTS, "--server", "local", "--format", "json"))
    assert shown["protocol"] == "delegated"
    assert len(shown["results"]) == 2


def test_a_conversation_reads_each_token_once_and_survives_a_lost_server(llama, tmp_path):
    loaded = load(llama)
    folder = delegate_folder(loaded, tmp_path / "open")
    with bf.DelegatedClient("local", folder=folder) as client:
        passes: list[int] = []
        talk = client.conversation(lambda name, answer: passes.append(answer.timings.online.sent))
        ids = talk.chat.prompt([{"role": "user", "content": "Hi"}])
        exact = loaded.model.model.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, pad_token_id=0)
        reply = talk.say("Hi", max_new_tokens=4)
        assert [*ids, *reply.tokens] == exact[0].tolist()
        assert max(passes) == passes[0]  # the prompt goes in one pass
        passes.clear()
        second = talk.say("And you?", max_new_tokens=2)
        assert talk.rows.asked < second.prompt_tokens  # what was read is not read again
        assert client.parties.services is not None
        os.kill(client.parties.services.processes["server"], signal.SIGKILL)
        assert talk.say("Still there?", max_new_tokens=2).retried


def test_a_module_of_ones_own_runs_with_its_own_generate(llama):
    module = load(llama).model.model
    ids = torch.tensor([[5, 6, 7, 8], [9, 8, 7, 6]])
    options = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False, "pad_token_id": 0}
    wanted = module.generate(ids, **options)
    with bf.make_private(module, weights="public") as private:
        assert torch.equal(private.generate(ids, **options), wanted)
        logits = private(ids).logits
        assert private.report.protocol == "delegated"
    assert torch.cosine_similarity(logits.flatten(), module(ids).logits.flatten(), dim=0) > 0.999999


def test_an_encoder_decoder_model_writes_as_in_float32(tmp_path):
    folder = tiny_marian(tmp_path / "marian")
    loaded = load(folder)
    inputs = loaded.processor("ab cd", return_tensors="pt")
    options = {"max_new_tokens": 4, "num_beams": 1, "do_sample": False}
    exact = loaded.model.generate(inputs["input_ids"], attention_mask=inputs["attention_mask"], **options)
    wanted = loaded.task.words.decode(exact[0], skip_special_tokens=True)
    with bf.pipeline("translation", model=folder, weights="public") as translate:
        (answer,) = translate("ab cd", max_new_tokens=4)
    assert answer["translation_text"].strip() == wanted.strip()
