"""A tiny measurement of answers token by token, by protocol: figures that agree."""

from pathlib import Path

import pytest
from blindformer.bench import generation
from blindformer.tests.shared.tiny import tiny_llama

KEYS = """
    text tokens prompt_tokens prefill_s online_s_per_token offline_s_per_token online_bytes_per_token
    offline_bytes_per_token rounds_per_token passes drafts_accepted plaintext_s_per_token agree_top1 kl peak_rss_mb
    drafts weights plan protocol slots prefix cache wall_s_per_token positions rtt_s bandwidth tls threads groups_exact
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory):
    """Where the model is compiled, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setattr(generation, "SLOTS", 128)
        yield


@pytest.mark.parametrize(("protocol", "drafts"), [("clear", 0), ("beaver", 4)])
def test_a_line_says_all(model, measured, protocol, drafts):
    words = ["--model", model, "--cache", 40, "--tokens", 6, "--protocol", protocol, "--drafts", drafts]
    report = measured(generation, *words)
    assert set(report) >= set(KEYS.split())
    assert (report["prompt_tokens"], len(report["tokens"]), report["positions"]) == (40, 6, 45)
    assert report["passes"] + report["drafts_accepted"] == 6
    assert report["agree_top1"] > 0.9
    assert report["kl"] < 1e-3
    counted = [report[name] for name in ("rounds_per_token", "online_bytes_per_token", "offline_bytes_per_token")]
    assert all(value > 0 for value in counted) == (protocol == "beaver")
    (table,) = generation.show(report)
    assert f"6 tokens, {report['drafts_accepted']} from drafts" in "".join(map(str, table.columns[1].cells))


@pytest.mark.parametrize("weights", ["private", "public"])
def test_on_a_network_each_round_waits(model, measured, weights):
    words = ["--model", model, "--cache", 4, "--tokens", 2, "--rtt", 20, "--bandwidth", 200, "--weights", weights]
    report = measured(generation, *words)
    assert (report["protocol"], report["weights_are"]) == ("delegated" if weights == "public" else "beaver", weights)
    assert (report["rtt_s"], report["bandwidth"]) == (0.02, 2e8)
    assert report["online_bytes_per_token"] > 0
    # Where one party speaks twice in a row, the second message is on its way with the first.
    assert report["online_s_per_token"] > 0.8 * report["rounds_per_token"] * report["rtt_s"] / 2


def test_a_seeded_shape_is_written_layer_by_layer_and_its_products_are_exact(measured, monkeypatch):
    monkeypatch.setitem(generation.SEEDED, "llama-tiny", generation._llama(64, 2, 4, 2, 96, 300))
    words = ["--model", "llama-tiny", "--cache", 8, "--tokens", 2, "--weights", "public"]
    report = measured(generation, *words)
    assert (report["weights"], report["groups_exact"]) == ("seeded", [True] * 4)
    assert report["agree_top1"] > 0.9
    (folder,) = Path.home().rglob("llama-tiny")
    files = sorted(file.stem for file in folder.glob("*.safetensors"))
    layers = [f"model-model.layers.{number}" for number in range(2)]
    assert files == ["model-lm_head.weight", "model-model.embed_tokens.weight", *layers, "model-model.norm.weight"]
    monkeypatch.setattr(generation, "IN_MEMORY", 0.0)  # too large to be compared in float32
    large = measured(generation, *words)
    assert (large["groups_exact"], large["agree_top1"], large["plaintext_s_per_token"]) == ([True] * 4, None, None)
    (table,) = generation.show(large)
    assert "4 of 4 groups of layers" in "".join(map(str, table.columns[1].cells))


def test_short_messages_are_answered_as_float32_would(model, measured):
    words = ["--model", model, "--prompts", 2, "--tokens", 5, "--protocol", "clear"]
    report = measured(generation, *words)
    assert (report["prompts"], report["positions"]) == (2, 10)
    assert report["agree_top1"] >= 0.9
    assert report["same_answers"] >= 1
    assert 0 < report["kl"] < 1e-3
    assert (report["passes"], report["drafts_accepted"], report["drafts_speed"]) == (8, 0, None)
    again = measured(generation, *words, "--quotes", "--drafts", 3)
    assert (again["quotes"], again["positions"], len(again["answers"])) == (True, 10, 2)
    assert again["passes"] + again["drafts_accepted"] == 8
    assert again["drafts_speed"] > 0
    (table,) = generation.show(again)
    assert "2, answered with at most 5 tokens each" in "".join(map(str, table.columns[1].cells))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--rtt", "20"], "--rtt and --bandwidth: give both, or none"),
        (
            ["--rtt", "20", "--bandwidth", "9", "--protocol", "clear"],
            "--rtt and --bandwidth: are for protocols beaver and",
        ),
        (["--prompts", "99"], "--prompts: give 1 to 20"),
        (["--prompts", "2", "--rtt", "20", "--bandwidth", "9"], "--rtt and --bandwidth: change no token"),
        (["--cache", "1"], "--cache and --tokens: give at least 2 and 1"),
    ],
)
def test_bad_requests_are_one_line(model, capsys, words, line):
    assert generation.main(["--model", str(model), "--cache", "4", "--tokens", "2", *words]) == 1
    assert f"bench.generation: {line}" in capsys.readouterr().err
