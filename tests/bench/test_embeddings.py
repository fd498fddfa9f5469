"""`python -m bench.embeddings`: a student beside its teacher, and heads on both, as one JSON object."""

from __future__ import annotations

import json

import pytest
from blindformer.bench.embeddings import main


@pytest.fixture
def file(tmp_path):
    words = ["good", "bad", "red", "blue", "my", "password", "is", "the"]
    rows = [
        f"it is {words[i % 8]} {words[i // 8 % 8]} {words[i // 3 % 8]} {'the ' * (i % 3)},{i % 2}" for i in range(80)
    ]
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(["text,label", *rows]) + "\n")
    return path


def test_a_model_beside_itself_is_itself(tiny_encoder, file, capsys):
    same = ["--model", str(tiny_encoder), "--teacher", str(tiny_encoder)]
    assert main([*same, "--data", str(file), "--pairs", "6", "--heads", str(file), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["computed"] for row in found["likeness"]] == ["torch", "clear"]
    assert all(row["cosine"] > 0.999 and row["random"] > 0.9 and not row["refused"] for row in found["likeness"])
    (heads,) = found["heads"]
    assert heads["test"] == 16
    assert abs(heads["teacher"] - heads["student"]) < 0.1


def test_more_pairs_than_texts_are_refused(tiny_encoder, file, capsys):
    assert main(["--model", str(tiny_encoder), "--teacher", str(tiny_encoder), "--data", str(file)]) == 1
    assert "held-out texts; give --pairs" in capsys.readouterr().err
