"""Both sides of the comparison on the same tiny model: each right, and ratios that are quotients of what is shown."""

import argparse
import importlib.util
import json
from typing import Any

import pytest

pytest.importorskip("transformers")
if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.bench import peers
from blindformer.tests.shared.tiny import TEMPLATE, tiny_llama


@pytest.fixture(scope="module")
def report(tmp_path_factory: Any, measured: Any) -> dict[str, Any]:
    picture = tmp_path_factory.mktemp("peers") / "peers.png"
    line = measured(peers, "--model", "bert-tiny", "--length", 8, "--parties", 3, "--plot", picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    return line


def test_ratios_are_quotients(report: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in report["rows"]}
    peer = rows["crypten, plain"]
    assert {row["name"] for row in report["ratios"]} == {"blindformer, beaver", "blindformer, crypten"}
    for ratios in report["ratios"]:
        ours = rows[ratios["name"]]
        assert ratios["time"] == pytest.approx(peer["online_s"] / ours["online_s"])
        assert ratios["bytes"] == pytest.approx(peer["online_bytes"] / ours["online_bytes"])
        assert ratios["rounds"] == pytest.approx(peer["rounds"] / ours["rounds"])
        whole = ours["online_s"] + ours["offline_s"]
        assert ratios["time_with_offline"] == pytest.approx(peer["online_s"] / whole)
        whole = ours["online_bytes"] + ours["offline_bytes"]
        assert ratios["bytes_with_offline"] == pytest.approx(peer["online_bytes"] / whole)


def test_all_are_right_on_seeded_weights(report: dict[str, Any]) -> None:
    assert report["weights"] == "seeded"
    assert [row["parties"] for row in report["rows"]] == [2, 3, 2]
    assert [row["max_abs_error"] < limit for row, limit in zip(report["rows"], (0.005, 0.005, 0.05), strict=True)] == [
        True
    ] * 3
    assert min(row["cosine_min"] for row in report["rows"]) > 0.9999


def test_a_program_costs_the_same_rounds_on_either_protocol(report: dict[str, Any]) -> None:
    beaver, crypten, _ = report["rows"]
    assert beaver["rounds"] == crypten["rounds"]
    assert 0.6 < beaver["offline_bytes"] / crypten["offline_bytes"] < 1.01, "to one party, whatever N; two have keys"
    assert crypten["online_bytes"] > 2 * beaver["online_bytes"]


def test_says_what_differs(report: dict[str, Any]) -> None:
    assert [row["tls"] for row in report["rows"]] == [True, True, False]
    assert "party 0" in " ".join(report["notes"])
    assert "INSECURE" in report["notes"][0]
    assert report["crypten"]["versions"]["crypten"]
    assert "--spu-python" in report["skipped"]
    table, *notes = peers.show(report)
    assert [str(cell) for cell in table.columns[0].cells] == [row["name"] for row in report["rows"]]
    assert len(notes) == len(report["notes"]) + 1


def test_a_language_model_answers_beside_pllm_run(tmp_path: Any, monkeypatch: Any) -> None:
    """The peer is a script that prints what pllm-run's record holds."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tiny_llama(tmp_path / "model", TEMPLATE)
    read = len(peers.PROMPTS[3]) + 3  # begin, user and model: a token each
    record = {
        "tokens": {"input_tokens": read, "output_tokens": 3},
        "durations": {"ttft_seconds": 2.0, "generation_seconds": 1.0},
        "privacy": {"masked_online_upload_bytes": 1000, "masked_online_download_bytes": 2000},
        "text": "abc",
        "version": "0",
    }
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\ncat > /dev/null\necho '{json.dumps(record)}'\n")
    script.chmod(0o755)
    chosen = argparse.Namespace(model=str(folder), tokens=3, plan="fast", timeout=60, pllm_python=str(script))
    report = peers.measure_generation(chosen, lambda line: None)
    ours, peer = report["rows"]
    assert (report["prompt_tokens"], len(report["answers"]), report["skipped"]) == (read, 3, None)
    assert (ours["tokens"], ours["right"]) == (3, 3)
    assert (peer["name"], peer["first_token_s"], peer["s_per_token"]) == ("pllm-run 0", 2.0, 0.5)
    assert peer["online_bytes_per_row"] == 3000 / (read + 2)
    assert 0 < ours["online_bytes_per_row"] < 10_000
    table, *notes = peers.show(report)
    assert [str(cell) for cell in table.columns[0].cells] == ["blindformer, delegated, fast", "pllm-run 0"]
    assert len(notes) == 3
    script.write_text(script.read_text().replace(f'"input_tokens": {read}', '"input_tokens": 1'))
    with pytest.raises(peers.BenchError, match=f"read 1 tokens where float32 reads {read}"):
        peers.measure_generation(chosen, lambda line: None)
