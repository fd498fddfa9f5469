"""Both sides of the comparison on the same tiny model: each right, and ratios that are quotients of what is shown."""

import contextlib
import importlib.util
import io
import json
from typing import Any

import pytest

pytest.importorskip("transformers")
if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.bench import peers


@pytest.fixture(scope="module")
def found(tmp_path_factory: Any) -> dict[str, Any]:
    stdout, picture = io.StringIO(), tmp_path_factory.mktemp("peers") / "peers.png"
    arguments = ["--model", "bert-tiny", "--length", "8", "--parties", "3", "--plot", str(picture), "--format", "json"]
    with contextlib.redirect_stdout(stdout):
        assert peers.main(arguments) == 0
    assert stdout.getvalue().count("\n") == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    return json.loads(stdout.getvalue())


def test_ratios_are_quotients(found: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in found["rows"]}
    peer = rows["crypten, plain"]
    assert {row["name"] for row in found["ratios"]} == {"blindformer, beaver", "blindformer, crypten"}
    for ratios in found["ratios"]:
        ours = rows[ratios["name"]]
        assert ratios["time"] == pytest.approx(peer["online_s"] / ours["online_s"])
        assert ratios["bytes"] == pytest.approx(peer["online_bytes"] / ours["online_bytes"])
        assert ratios["rounds"] == pytest.approx(peer["rounds"] / ours["rounds"])
        whole = ours["online_s"] + ours["offline_s"]
        assert ratios["time_with_offline"] == pytest.approx(peer["online_s"] / whole)
        whole = ours["online_bytes"] + ours["offline_bytes"]
        assert ratios["bytes_with_offline"] == pytest.approx(peer["online_bytes"] / whole)


def test_all_are_right_on_seeded_weights(found: dict[str, Any]) -> None:
    assert found["weights"] == "seeded"
    assert [row["parties"] for row in found["rows"]] == [2, 3, 2]
    assert [row["max_abs_error"] < limit for row, limit in zip(found["rows"], (0.005, 0.005, 0.05), strict=True)] == [
        True
    ] * 3
    assert min(row["cosine_min"] for row in found["rows"]) > 0.9999


def test_a_program_costs_the_same_rounds_on_either_protocol(found: dict[str, Any]) -> None:
    beaver, crypten, _ = found["rows"]
    assert beaver["rounds"] == crypten["rounds"]
    assert beaver["offline_bytes"] == pytest.approx(crypten["offline_bytes"], rel=0.01), "to one party, whatever N"
    assert crypten["online_bytes"] > 2 * beaver["online_bytes"]


def test_says_what_differs(found: dict[str, Any]) -> None:
    assert [row["tls"] for row in found["rows"]] == [True, True, False]
    assert "party 0" in " ".join(found["notes"])
    assert "INSECURE" in found["notes"][0]
    assert found["crypten"]["versions"]["crypten"]
    assert "--spu-python" in found["skipped"]
