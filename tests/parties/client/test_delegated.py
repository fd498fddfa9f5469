"""Public models by name, folder and module: commands and Python, with a server and a dealer of this machine."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

import blindformer as bf
import pytest
import torch
from blindformer.models.delegated import is_delegated
from blindformer.models.delegated.building import delegate_folder
from blindformer.models.delegated.folder import load_part
from blindformer.models.delegated.manifest import prepare
from blindformer.models.delegated.running import DelegatedRunner
from blindformer.models.loading.adapters import is_added
from blindformer.models.loading.load import load
from blindformer.parties.cli.app import app
from blindformer.parties.config import load_settings
from blindformer.parties.gateway.model_pool import open_pools
from blindformer.protocols.errors import BlindformerError
from blindformer.tests.shared.adapters import save_adapter
from blindformer.tests.shared.memory import is_message
from blindformer.tests.shared.threads import DelegatedThreads
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama
from typer.testing import CliRunner

TEXTS = ["nobody reads this", "where is my parcel"]
pytestmark = pytest.mark.usefixtures("module_home")  # where models are prepared to


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
    refusals = {"--calibrate .": "--calibrate: is for compiled models", "--plan he": "plan he: a public model runs as"}
    for option, words in refusals.items():
        with pytest.raises(BlindformerError, match=f"^{words}"):
            command("run", tiny_classifier, TEXTS[0], "--weights", "public", *option.split())


def test_plan_fast_takes_a_quarter_less_traffic(tiny_classifier):
    costs = {}
    for plan in ("faithful", "fast"):
        public = ["--weights", "public", "--plan", plan, "--length", 8, "--format", "json"]
        shown = json.loads(command("estimate", tiny_classifier, *public))
        costs[plan] = [shown[name] for name in ("up_bytes", "down_bytes", "offline_bytes")]
    assert [4 * number for number in costs["fast"]] == [3 * number for number in costs["faithful"]]


def test_a_compiled_folder_is_known_by_every_command(tiny_classifier, tmp_path):
    folder = tmp_path / "open"
    assert str(folder / "dealer") in command("compile", tiny_classifier, "--weights", "public", "--out", folder)
    assert all(is_delegated(folder / part) for part in ("", "server", "dealer", "client"))
    assert json.loads(command("models", "show", folder, "--format", "json"))["groups"]
    shown = json.loads(command("query", folder, *TEXTS, "--server", "local", "--format", "json"))
    assert shown["protocol"] == "delegated"
    assert len(shown["results"]) == 2


def test_a_conversation_reads_each_token_once_and_survives_a_lost_server(llama, tmp_path):
    loaded = load(llama)
    folder = delegate_folder(loaded, tmp_path / "open")
    with bf.DelegatedClient("local", folder=folder) as client:
        passes: list[int] = []
        assert "learns nothing about the text" in client.who_learned()["server"]
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


WIDE_ADAPTER = {"r": 32, "lora_alpha": 40, "target_modules": ["q_proj", "v_proj", "o_proj", "up_proj"]}


@pytest.fixture(scope="module")
def pirate(llama, tmp_path_factory):
    """An adapter whose matrices are as wide as layers that are delegated."""
    return save_adapter(llama, tmp_path_factory.mktemp("pirate") / "pirate", **WIDE_ADAPTER)


@pytest.fixture(scope="module")
def moods(tiny_features, tmp_path_factory):
    """One that brings a head, which its base has not."""
    folder = tmp_path_factory.mktemp("moods") / "moods"
    return save_adapter(tiny_features, folder, "SEQ_CLS", r=32, labels=3, target_modules=["query", "value"])


def seen_of(module: torch.nn.Module, ids: torch.Tensor) -> tuple[str, list[torch.Tensor], list[bytes | int]]:
    """Digest and integers of a prepared module, and what a client sends to server and dealer in one pass: of uniform
    numbers their bytes alone."""
    model = prepare(module, lambda: module(ids))
    assert not any(map(is_added, model.manifest.parameters))
    site, received = DelegatedThreads(model), list[list[bytes]]()
    connect = site.connect

    def watched(a: str, b: str) -> tuple:
        pair = connect(a, b)
        if "client" in (a, b):
            theirs: Any = pair[a == "client"]
            received.append(record := [])
            theirs.record = record
        return pair

    site.connect = watched  # type: ignore[method-assign]
    client = site.client()
    runner = DelegatedRunner(module, model)
    answer = runner.run(client, module, ids, use_cache=False).logits
    assert torch.cosine_similarity(answer.flatten(), module(ids).logits.flatten(), dim=0) > 0.999999
    client.close()
    site.join(20)
    site.close()
    frames = [frame if is_message(frame) and b'"seed' not in frame else len(frame) for one in received for frame in one]
    return model.manifest.digest, list(model.integers), frames


def test_no_number_of_an_adapter_reaches_server_or_dealer(llama, pirate):
    """What they hold and see is what the base alone would show them."""
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    base, adapted = (seen_of(load(llama, one).model.model, ids) for one in (None, pirate))
    assert base[0] == adapted[0]
    assert all(map(torch.equal, base[1], adapted[1]))
    assert base[2] == adapted[2]


def test_an_adapter_of_ones_own_is_put_on_a_served_model(llama, pirate, tmp_path):
    folder = delegate_folder(load(llama), tmp_path / "open")
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    exact = load(llama, pirate).model.model
    with bf.DelegatedClient("local", folder=folder, adapter=pirate) as client:
        talk = client.conversation()
        ids = talk.chat.prompt([{"role": "user", "content": "Hi"}])
        wanted = exact.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert [*ids, *talk.say("Hi", max_new_tokens=6).tokens] == wanted[0].tolist()
        assert client.part.model.manifest == load_part(folder).model.manifest
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    shown = json.loads(command("chat", folder, "Hi", "--adapter", pirate, "--max-new-tokens", 6, "--format", "json"))
    assert shown["tokens"] == wanted[0].tolist()[len(ids) :]
    own = command("chat", llama, "Hi", "--weights", "public", "--adapter", pirate, "--max-new-tokens", 6)
    assert own == shown["text"] + "\n"


def test_an_adapter_with_a_head_is_asked_by_commands_and_in_python(tiny_features, moods, tmp_path):
    shown = json.loads(
        command("run", tiny_features, *TEXTS, "--weights", "public", "--adapter", moods, "--format", "json")
    )
    assert shown["protocol"] == "delegated"
    assert shown["cosine_min"] > 0.999999
    command("compile", tiny_features, "--weights", "public", "--out", tmp_path / "open")
    asked = command("query", tmp_path / "open", *TEXTS, "--server", "local", "--adapter", moods, "--format", "json")
    for one, other in zip(shown["results"], json.loads(asked)["results"], strict=True):
        scores, others = ({label["label"]: label["score"] for label in each["labels"]} for each in (one, other))
        assert others == pytest.approx(scores, abs=1e-3)
    with bf.pipeline("text-classification", tiny_features, weights="public", adapter=moods, top_k=None) as classify:
        assert len(classify(TEXTS[0])[0]) == 3


def test_a_model_of_peft_runs_with_its_adapter_here(llama, pirate):
    import peft

    module = peft.PeftModel.from_pretrained(load(llama).model.model, pirate).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    wanted = module.generate(input_ids=ids, **options)
    with bf.make_private(module, weights="public") as private:
        assert torch.equal(private.generate(ids, **options), wanted)
        assert private.report.rounds > 0
        assert not any(map(is_added, private.prepare({"input_ids": ids}).model.manifest.parameters))
    module.merge_adapter()
    with pytest.raises(BlindformerError, match=r"^model: its adapter is merged"):
        bf.make_private(module, weights="public")


def test_a_gateway_offers_ones_own_adapter_beside_its_base(llama, pirate, tmp_path):
    folder = delegate_folder(load(llama), tmp_path / "open")
    settings = load_settings(
        None, **{"gateway.models": {"base": {"folder": folder, "server": "local"},
                                    "pirate": {"folder": folder, "server": "local", "adapter": str(pirate)}}}
    )  # fmt: skip
    pools = open_pools(settings)
    assert [pool.client.part.name for pool in pools.values()] == [load(llama).name, load(llama, pirate).name]
    for pool in pools.values():
        pool.close()


def test_padding_is_asked_for_by_commands(llama, tmp_path):
    folder, file = delegate_folder(load(llama), tmp_path / "open"), tmp_path / "blindformer.toml"
    file.write_text("[client]\npad = true\n")
    plain, padded = (
        json.loads(command("chat", folder, "Hi", "--max-new-tokens", 3, "--format", "json", *more))
        for more in ([], ["--config", file])
    )
    assert padded["tokens"] == plain["tokens"]
    assert (plain["passes"], padded["passes"]) == (3, 16)


def test_a_module_drafts_with_a_small_model_and_pads_its_rows(llama, tmp_path):
    """By transformers' own assisted generation. The small model is the same one, so all of its drafts are right."""
    module, small = (load(folder).model.model for folder in (llama, tiny_llama(tmp_path, TEMPLATE)))
    small.generation_config.num_assistant_tokens = 3
    small.generation_config.assistant_confidence_threshold = 0.0
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with bf.make_private(module, weights="public", pad=True) as private:
        assert torch.equal(private.generate(ids, assistant_model=small, **options), module.generate(ids, **options))
        rounds = private.report.rounds
        private.generate(ids, **options)
        assert private.report.rounds == 4 * rounds
    with pytest.raises(BlindformerError, match=r"^pad: is for models that run as they are"):
        bf.make_private(module, pad=True)


def test_memory_of_the_client_saves_rounds_in_commands_and_in_python(llama, tiny_classifier, tmp_path):
    file = tmp_path / "blindformer.toml"
    file.write_text('[client]\nmemory = "20kB"\n')
    ask = ("run", tiny_classifier, *TEXTS, "--weights", "public", "--format", "json")
    plain, fewer = (json.loads(command(*ask, *more)) for more in ([], ["--config", file]))
    assert fewer["rounds"] < plain["rounds"]
    assert fewer["online_bytes"] < plain["online_bytes"]
    assert fewer["cosine_min"] > 0.999999
    price = json.loads(command("estimate", *ask[1:2], *ask[4:], "--client-memory", "20kB", "--length", plain["length"]))
    assert (price["rounds"], price["up_bytes"] + price["down_bytes"]) == (fewer["rounds"], fewer["online_bytes"])
    folder = delegate_folder(load(llama), tmp_path / "open")
    generate = ("chat", folder, "Hi", "--max-new-tokens", 4, "--format", "json")
    plain, fewer = (json.loads(command(*generate, *more)) for more in ([], ["--config", file]))
    assert fewer["tokens"] == plain["tokens"]
    assert fewer["rounds_per_token"] == plain["rounds_per_token"] / 2
    module, ids = load(llama).model.model, torch.tensor([[5, 6, 7, 8]])
    with bf.make_private(module, weights="public", client_memory="20kB") as private:
        answer = private(ids).logits
        assert private.report.rounds == 2
    assert torch.cosine_similarity(answer.flatten(), module(ids).logits.flatten(), dim=0) > 0.999999


def test_a_small_model_drafts_for_commands(llama, tmp_path):
    """It is the same model, so each pass brings four tokens."""
    small, ask = tiny_llama(tmp_path, TEMPLATE), ("chat", llama, "Hi", "--weights", "public", "--format", "json")
    plain, drafted = (
        json.loads(command(*ask, "--max-new-tokens", 9, *more)) for more in ([], ["--assistant", small, "--drafts", 3])
    )
    assert drafted["tokens"] == plain["tokens"]
    assert (plain["passes"], drafted["passes"], drafted["drafts_accepted"]) == (9, 3, 6)
    assert drafted["rounds_per_token"] == plain["rounds_per_token"] / 4


def test_what_is_said_to_be_private_is_never_delegated(tiny_classifier):
    """Also by who names the protocol."""
    ask = ("run", tiny_classifier, TEXTS[0], "--protocol", "delegated")
    for more in (
        ["--weights", "private"],
        ["--weights", "public", "--weights", "classifier.*=private"],
        ["--weights", "public", "--embedding", "private"],
    ):
        with pytest.raises(BlindformerError, match=r"^protocol delegated: shows all weights to every party"):
            command(*ask, *more)
    with pytest.raises(BlindformerError, match=r"^protocol delegated: shows all weights to every party"):
        bf.make_private(load(tiny_classifier), protocol="delegated", weights={"private": ["*"]})
    assert json.loads(command(*ask, "--format", "json"))["protocol"] == "delegated"
