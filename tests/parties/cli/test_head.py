"""`blindformer head`: labelled texts in, a classifier's folder and its accuracy out; errors say what to do."""

from __future__ import annotations

import json
from functools import partial

import pytest


@pytest.fixture
def call(call):
    return partial(call, "head")


def table(path, rows, head="text,label"):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


ROWS = [f"it is {'good' if i % 2 else 'bad'} {'the ' * (i // 2)},{['no', 'yes'][i % 2]}" for i in range(60)]


def test_a_file_becomes_a_classifier(call, tiny_encoder, tmp_path):
    file = table(tmp_path / "rows.csv", [*ROWS, ROWS[0]])
    code, printed, said = call(tiny_encoder, "--data", file, "--out", tmp_path / "out", "--format", "json")
    assert code == 0
    assert "note: rows.csv: rows left out: 1 duplicate" in said
    found = json.loads(printed)
    assert found["folder"] == str(tmp_path / "out")
    assert found["data"]["labels"] == ["no", "yes"]
    assert set(found["accuracy"]) == {"train", "validation", "test"}
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"config.json", "model.safetensors", "2_Dense"}


def test_nothing_is_compiled_into_it_which_would_answer_in_its_name(call, tiny_encoder, tmp_path):
    out, any_command = tmp_path / "out", call.func
    assert call(tiny_encoder, "--data", table(tmp_path / "rows.csv", ROWS), "--out", out)[0] == 0
    before = sorted(out.iterdir())
    code, _, errors = any_command("compile", tiny_encoder, "--lengths", 16, "--out", out)
    assert (code, errors) == (
        1,
        f"blindformer: {out}: holds a model; give compile a new folder, such as {out}-compiled\n",
    )
    assert sorted(out.iterdir()) == before
    assert any_command("compile", out, "--lengths", 16, "--out", tmp_path / "compiled")[0] == 0
    assert any_command("compile", out, "--lengths", 8, "--out", tmp_path / "compiled")[0] == 0
    again = (tiny_encoder, "--data", tmp_path / "rows.csv", "--out", tmp_path / "compiled")
    assert f"{tmp_path / 'compiled'}: holds a compiled model already; give a new folder" in call(*again)[2]


@pytest.mark.parametrize(
    ("rows", "head", "options", "words"),
    [
        ([], "text,label", (), "holds no examples; give rows with a text and a label"),
        (["good,yes"] * 20, "text,label", (), "every example is 'yes'; a classifier needs two classes or more"),
        (ROWS, "text,wrong", (), "which column is the label? It has text, wrong; name one with --label-column"),
        (ROWS, "text,label", ("--label-column", "mood"), "has no column 'mood'; it has text, label"),
        (["good,"] * 20, "text,label", (), "lacks 'text' or 'label'; fill it in, or remove the line"),
    ],
)
def test_an_error_says_what_to_do(call, tiny_encoder, tmp_path, rows, head, options, words):
    code, _, said = call(tiny_encoder, "--data", table(tmp_path / "rows.csv", rows, head), *options)
    assert code != 0
    assert words in said
