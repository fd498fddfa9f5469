"""`blindformer federate`: the same as the function, with one JSON object out, a picture, and errors of one line."""

from __future__ import annotations

import json
from functools import partial

import pytest

pytest.importorskip("flwr", reason="the extra `federated` is not installed")
pytest.importorskip("sklearn", reason="scikit-learn ships the digits")

QUICK = ("--data", "digits", "--clients", "3", "--rounds", "2", "--epochs", "1", "--layers", "1")


@pytest.fixture
def call(call):
    return partial(call, "federate")


def test_a_folder_a_picture_and_one_object(call, tmp_path):
    out, plot = tmp_path / "out", tmp_path / "rounds.png"
    options = ("--dp", "central", "--noise", "1", "--plot", plot, "--secagg", "--alpha", "0.5")
    code, printed, errors = call(*QUICK, *options, "--out", out, "--format", "json")
    assert (code, errors) == (0, "")
    found = json.loads(printed)
    assert found["folder"] == str(out)
    assert [r["number"] for r in found["rounds"]] == [1, 2]
    assert found["epsilon"] > 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in out.iterdir()} >= {"config.json", "model.safetensors", "plan.json", "calibration"}


def test_in_words(call, tmp_path):
    out = tmp_path / "out"
    code, printed, errors = call(*QUICK, "--out", out, "--rounds", "1")
    assert (code, errors) == (0, "")
    assert "3 clients, alike" in printed
    assert f"blindformer evaluate {out} --data digits" in " ".join(printed.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nothing"), "no such file or folder, and no data set of that name"),
        (("--clients", "5000"), "5000 clients: there are 1294 examples to share; give fewer clients"),
        (("--strategy", "best"), "unknown strategy 'best'"),
        (("--dp", "perhaps"), "setting dp: "),
        (("--strategy", "fedmedian", "--secagg"), "compares single updates, which secagg hides"),
        (("--plot", "rounds.pdf"), "the plot is a picture (.png)"),
        (("--plan", "quick"), "unknown preset 'quick'"),
    ],
)
def test_what_cannot_be_is_one_line(call, tmp_path, arguments, message):
    code, printed, errors = call(*QUICK, *arguments, "--out", tmp_path / "out")
    assert (code, printed) == (1, "")
    assert message in errors
    assert errors.count("\n") == 1
