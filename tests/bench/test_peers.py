"""Both sides of the comparison on the same tiny model: each right, and ratios that are quotients of what is shown."""

import importlib.util
from typing import Any

import pytest

pytest.importorskip("transformers")
if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.bench import peers


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
