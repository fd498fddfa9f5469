"""bench.odd: texts that calibration does not have, judged against float32 and in private."""

import json

import pytest
from blindformer.bench.odd import Asked, Odd, judged, main
from blindformer.models.loading.calibration_texts import ODD, TEXTS
from blindformer.tests.shared.odd_texts import KINDS, odd_texts
from torch import tensor


def test_texts_are_seeded_of_all_kinds_and_unknown_to_calibration():
    found = odd_texts(300)
    assert found == odd_texts(300) != odd_texts(300, seed=1)
    assert {kind for kind, _ in found} == set(KINDS)
    texts = [text for _, text in found]
    assert all(text.strip() for text in texts)
    assert not {text.strip() for text in texts} & {text.strip() for text in (*TEXTS, *ODD)}
    assert len(set(texts)) > 270


def test_a_model_is_judged(tiny_encoder, capsys):
    options = ["--count", "30", "--private", "2", "--format", "json"]
    assert main(["--model", str(tiny_encoder), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["count"], found["refused"], found["wrong"]) == (30, 0, 0)
    assert (found["private"], found["private_refused"], found["private_disagree"]) == (2, 0, 0)
    assert found["cosine_min"] > 0.9995
    assert found["plan"] == "faithful"


def test_what_is_wrong_is_counted_and_named():
    right, wrong = {"y": tensor([1.0, 2.0])}, {"y": tensor([2.0, -1.0])}
    asked = [
        Asked("phrase 0", {}, right, clear=right, private=right),
        Asked("phrase 1", {}, right, clear=wrong, private=right),
        Asked("phrase 2", {}, right, clear=None, private=None),
        Asked("phrase 3", {}, right, clear=right, private=None),
    ]
    found = judged(Odd("m", "p", 4, 0, 0, 1.0, "", 4, 0, 0, 1.0), asked, asked)
    assert (found.refused, found.wrong, found.worst) == (1, 1, "phrase 1")
    assert (found.private_refused, found.private_disagree) == (2, 2)
    assert found.cosine_min == pytest.approx(0.0, abs=1e-6)
    assert [line.split(":")[0] for line in found.failed] == ["phrase 1", "phrase 2", "phrase 1", "phrase 3"]


def test_a_folder_that_is_not_there_is_one_line(capsys):
    assert main(["--model", "./nowhere"]) == 1
    assert (
        capsys.readouterr()
        .err.strip()
        .endswith("give a model's folder, a hub id like org/name, minilm, minilm-fast or smollm2")
    )
