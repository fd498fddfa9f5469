"""A tiny measurement of answers token by token, by protocol: figures that agree, one JSON line on stdout."""

import contextlib
import io
import json

import pytest
from blindformer.bench import generation
from blindformer.tests.shared.tiny import tiny_llama

KEYS = """
    text tokens prompt_tokens prefill_s online_s_per_token offline_s_per_token online_bytes_per_token
    offline_bytes_per_token rounds_per_token passes drafts_accepted plaintext_s_per_token agree_top1 kl peak_rss_mb
    drafts machine versions commit
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("protocol", "drafts"), [("clear", 0), ("beaver", 4)])
def test_a_line_says_all(model, tmp_path, monkeypatch, protocol, drafts):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(generation, "SLOTS", 64)
    words = ["--model", str(model), "--cache", "40", "--tokens", "6", "--protocol", protocol, "--drafts", str(drafts)]
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert generation.main([*words, "--format", "json"]) == 0
    assert stdout.getvalue().count("\n") == 1
    found = json.loads(stdout.getvalue())
    assert set(found) >= set(KEYS.split())
    assert (found["prompt_tokens"], len(found["tokens"]), found["positions"]) == (40, 6, 45)
    assert found["passes"] + found["drafts_accepted"] == 6
    assert found["agree_top1"] > 0.9
    assert found["kl"] < 1e-3
    counted = [found[name] for name in ("rounds_per_token", "online_bytes_per_token", "offline_bytes_per_token")]
    assert all(value > 0 for value in counted) == (protocol == "beaver")


def test_on_a_network_each_round_waits(model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(generation, "SLOTS", 64)
    words = ["--model", str(model), "--cache", "4", "--tokens", "2", "--rtt", "20", "--bandwidth", "200"]
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert generation.main([*words, "--format", "json"]) == 0
    found = json.loads(stdout.getvalue())
    assert (found["rtt_s"], found["bandwidth"]) == (0.02, 2e8)
    assert found["online_bytes_per_token"] > 0
    # Where one party speaks twice in a row, the second message is on its way with the first.
    assert found["online_s_per_token"] > 0.8 * found["rounds_per_token"] * found["rtt_s"] / 2


@pytest.mark.parametrize("words", [["--rtt", "20"], ["--rtt", "20", "--bandwidth", "9", "--protocol", "clear"]])
def test_a_network_is_both_numbers_and_has_parties(model, tmp_path, monkeypatch, capsys, words):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(generation, "SLOTS", 64)
    assert generation.main(["--model", str(model), "--cache", "4", "--tokens", "2", *words]) == 1
    assert "bench.generation: --rtt and --bandwidth: " in capsys.readouterr().err


def test_short_messages_are_answered_as_float32_would(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(generation, "SLOTS", 128)
    words = ["--model", str(model), "--prompts", "2", "--tokens", "5", "--protocol", "clear", "--format", "json"]
    assert generation.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["prompts"], found["positions"]) == (2, 10)
    assert found["agree_top1"] >= 0.9
    assert found["same_answers"] >= 1
    assert 0 < found["kl"] < 1e-3
    assert (found["passes"], found["drafts_accepted"], found["drafts_speed"]) == (8, 0, None)
    assert generation.main([*words, "--quotes", "--drafts", "3"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["quotes"], again["positions"], len(again["answers"])) == (True, 10, 2)
    assert again["passes"] + again["drafts_accepted"] == 8
    assert again["drafts_speed"] > 0
    assert generation.main([*words[:3], "99"]) == 1
    assert "--prompts: give 1 to 20" in capsys.readouterr().err
    assert generation.main([*words, "--rtt", "20", "--bandwidth", "9"]) == 1
    assert "--rtt and --bandwidth: change no token" in capsys.readouterr().err
