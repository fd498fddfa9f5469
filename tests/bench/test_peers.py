"""Both sides of the comparison on the same tiny model: each right, and ratios that are quotients of what is shown."""

import contextlib
import importlib.util
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import peers


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert peers.main(["--model", "bert-tiny", "--length", "8", "--plan", "faithful", "--format", "json"]) == 0
    assert stdout.getvalue().count("\n") == 1
    return json.loads(stdout.getvalue())


def test_ratios_are_quotients(found: dict[str, Any]) -> None:
    ours, peer, ratios = found["blindformer"], found["crypten"], found["ratios"]
    assert ratios["time"] == pytest.approx(peer["online_s"] / ours["online_s"])
    assert ratios["bytes"] == pytest.approx(peer["online_bytes"] / ours["online_bytes"])
    assert ratios["rounds"] == pytest.approx(peer["rounds"] / ours["rounds"])
    whole = ours["online_s"] + ours["offline_s"]
    assert ratios["time_with_offline"] == pytest.approx(peer["online_s"] / whole)
    whole = ours["online_bytes"] + ours["offline_bytes"]
    assert ratios["bytes_with_offline"] == pytest.approx(peer["online_bytes"] / whole)


def test_both_are_right_on_seeded_weights(found: dict[str, Any]) -> None:
    assert found["weights"] == "seeded"
    assert found["blindformer"]["max_abs_error"] < 0.005
    assert found["crypten"]["max_abs_error"] < 0.05
    assert min(found["blindformer"]["cosine_min"], found["crypten"]["cosine_min"]) > 0.9999


def test_says_what_differs(found: dict[str, Any]) -> None:
    assert (found["blindformer"]["tls"], found["crypten"]["tls"]) == (True, False)
    assert found["blindformer"]["threads"] == found["crypten"]["threads"]
    assert "party 0" in " ".join(found["notes"])
    assert "INSECURE" in found["notes"][0]
    assert found["crypten"]["versions"]["crypten"]
