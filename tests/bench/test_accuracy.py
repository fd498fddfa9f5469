"""The table of accuracies, on a model and a task of no size: every row is there, and says how it was computed."""

import contextlib
import io
import json
import random

import pytest
from blindformer.bench import accuracy

SETTINGS = ["teacher_epochs=2", "hidden_epochs=1", "logit_epochs=1", "teacher_rate=0.002", "length=16"]


@pytest.fixture(scope="module")
def arguments(tiny_encoder, tmp_path_factory) -> list[str]:
    folder, draw = tmp_path_factory.mktemp("accuracy"), random.Random(0)
    lines = []
    for i in range(80):
        words = [["bad", "good"][i % 2], *draw.choices(["the", "my", "red", "blue", "password", "!"], k=6)]
        draw.shuffle(words)
        lines.append(json.dumps({"text": " ".join(words), "label": i % 2}))
    (folder / "words.jsonl").write_text("\n".join(lines))
    given = ["--data", str(folder / "words.jsonl"), "--teacher", str(tiny_encoder), "--work", str(folder / "runs")]
    more = ["--layers", "1", "--beaver", "3", "--format", "json", "--seed", "2"]
    return [*given, *more, *(word for setting in SETTINGS for word in ("--set", setting))]


@pytest.fixture(scope="module")
def found(arguments) -> dict:
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert accuracy.main(arguments) == 0
    (line,) = stdout.getvalue().splitlines()
    return json.loads(line)


def test_every_row_is_there(found):
    rows = {(row["student"], row["name"], row["protocol"]): row for row in found["rows"]}
    assert list(rows) == [
        ("distilled", "teacher", "torch"),
        ("distilled", "approximated, untouched", "torch"),
        ("distilled", "approximated", "torch"),
        ("distilled", "approximated", "clear"),
        ("distilled", "approximated", "beaver"),
        ("1 layers", "approximated", "torch"),
        ("1 layers", "approximated", "clear"),
    ]
    private = rows["distilled", "approximated", "beaver"]
    assert private["count"] == 3
    assert private["agreement"]["clear"]["value"] == 1.0
    assert all(row["count"] == found["test"] for key, row in rows.items() if key[2] != "beaver")
    teacher = rows["distilled", "teacher", "torch"]["accuracy"]["value"]
    for student, lost in found["points_lost"].items():
        assert lost == pytest.approx(100 * (teacher - rows[student, "approximated", "clear"]["accuracy"]["value"]))
    assert found["kept_layers"] == {"distilled": [0], "1 layers": [0]}


def test_it_says_how_to_repeat_it(found, arguments):
    assert found["command"].split()[:3] == ["python", "-m", "bench.accuracy"]
    assert "--seed 2" in found["command"]
    assert found["settings"]["seed"] == 2
    assert found["settings"]["teacher_epochs"] == 2
    assert {"blindformer", "torch", "python"} <= set(found["versions"])


def test_what_is_trained_is_not_trained_again(found, arguments, monkeypatch):
    monkeypatch.setattr(accuracy, "distill", None)
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        assert accuracy.main([*arguments, "--beaver", "0"]) == 0
    again = json.loads(stdout.getvalue())
    kept = [row for row in found["rows"] if row["protocol"] != "beaver"]
    assert [row["accuracy"] for row in again["rows"]] == [row["accuracy"] for row in kept]
    assert again["training_s"] == {"distilled": 0.0, "1 layers": 0.0}
