"""`blindformer distill` and `train`: a file of texts in, a model's folder and one JSON object out."""

from __future__ import annotations

import csv
import json
from functools import partial

import pytest

EPOCHS = ("--set", "teacher_epochs=1", "--set", "hidden_epochs=1", "--set", "logit_epochs=1")


@pytest.fixture
def train(call):
    return partial(call, "train")


@pytest.fixture
def file(tmp_path):
    """Forty sentences in a table whose columns have names of their own."""
    path = tmp_path / "sentences.csv"
    with path.open("w", newline="", encoding="cp1252") as stream:
        rows = csv.writer(stream)
        rows.writerow(["what", "how"])
        for i in range(40):
            rows.writerow([f"it is {'good' if i % 2 else 'bad'}, my é {'the ' * (i // 2)}", ["no", "yes"][i % 2]])
    return path


NAMED = ("--text-column", "what", "--label-column", "how", "--encoding", "cp1252")


def test_a_file_a_teacher_and_a_folder(report_of, file, tiny_encoder, tmp_path):
    out = tmp_path / "out"
    report = report_of("distill", "--teacher", tiny_encoder, "--data", file, *NAMED, "--out", out, *EPOCHS, "--seed", 3)
    assert report["folder"] == str(out)
    assert report["settings"]["seed"] == 3
    assert report["data"]["labels"] == ["no", "yes"]
    assert set(report["validation_accuracy"]) == {"teacher", "student_in_training", "student"}
    assert {p.name for p in out.iterdir()} >= {"config.json", "model.safetensors", "plan.json", "tokenizer.json"}
    reading, of_teacher = (json.loads((folder / "data.json").read_text()) for folder in (out, out / "teacher"))
    assert reading == of_teacher
    assert (reading["seed"], reading["text"], reading["label"], reading["encoding"]) == (3, "what", "how", "cp1252")


def test_a_teacher_that_was_trained_on_what_its_student_is_judged_by_is_refused(
    call, refused, file, tiny_encoder, tmp_path
):
    options = ("--data", file, *NAMED, *EPOCHS)
    assert call("distill", "--teacher", tiny_encoder, *options, "--out", tmp_path / "first", "--seed", 3)[0] == 0
    teacher = tmp_path / "first" / "teacher"
    line = refused("distill", "--teacher", teacher, *options, "--out", tmp_path / "second")
    assert f"with seed 0 rows are tested that {teacher} was trained on; give seed 3" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "FILE", "--encoding", "cp1252"), "which column is the text"),
        (("--data", "FILE", *NAMED, "--plan", "quick"), "unknown preset 'quick'"),
        (("--data", "FILE", *NAMED, "--layers", "9"), "9 layers: the model has 1"),
        (("--data", "FILE", "--set", "width=9"), "--set width=9: give NAME=VALUE; --set help lists the settings"),
        (("--data", "FILE", "--set", "layers=9"), "--set layers=9: give NAME=VALUE"),
        (("--data", "FILE", "--set", "hidden=1"), "setting hidden: Input should be greater than or equal to 8"),
        (
            ("--data", "FILE", "--set", "hidden_epochs=0", "--set", "hidden=16", "--budget", "1s"),
            "--budget: counts a teacher's layers",
        ),
        (("--data", "FILE", *NAMED, "--teacher", "CLASSIFIER"), "its labels are no, yes, the model's are calm"),
    ],
)
def test_what_cannot_be_is_one_line(refused, file, tiny_encoder, tiny_classifier, tmp_path, arguments, message):
    places = {"FILE": file, "CLASSIFIER": tiny_classifier}
    given = [places.get(argument, argument) for argument in arguments]
    assert message in refused("distill", "--teacher", tiny_encoder, "--out", tmp_path / "out", *EPOCHS, *given)


# --- train


def table(path, rows, columns="text,label"):
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


ROWS = [f"it is {'good' if i % 2 else 'bad'} {'the ' * (i // 2)},{['no', 'yes'][i % 2]}" for i in range(60)]


def test_a_file_becomes_a_classifier(train, tiny_encoder, tmp_path):
    file = table(tmp_path / "rows.csv", [*ROWS, ROWS[0]])
    code, printed, notes = train(tiny_encoder, "--data", file, "--out", tmp_path / "out", "--format", "json")
    assert code == 0
    assert "note: rows.csv: rows left out: 1 duplicate" in notes
    report = json.loads(printed)
    assert report["folder"] == str(tmp_path / "out")
    assert report["data"]["labels"] == ["no", "yes"]
    assert set(report["accuracy"]) == {"train", "validation", "test"}
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors", "2_Dense"}


def test_nothing_is_compiled_into_it_which_would_answer_in_its_name(call, refused, train, tiny_encoder, tmp_path):
    out = tmp_path / "out"
    assert train(tiny_encoder, "--data", table(tmp_path / "rows.csv", ROWS), "--out", out)[0] == 0
    before = sorted(out.iterdir())
    line = refused("compile", tiny_encoder, "--lengths", 16, "--out", out)
    assert f"{out}: holds a model; give compile a new folder, such as {out}-compiled" in line
    assert sorted(out.iterdir()) == before
    assert call("compile", out, "--lengths", 16, "--out", tmp_path / "compiled")[0] == 0
    assert call("compile", out, "--lengths", 8, "--out", tmp_path / "compiled")[0] == 0
    again = (tiny_encoder, "--data", tmp_path / "rows.csv", "--out", tmp_path / "compiled")
    assert f"{tmp_path / 'compiled'}: holds a compiled model already; give a new folder" in train(*again)[2]
