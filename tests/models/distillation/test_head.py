"""A linear head on embeddings that stay: a classifier's folder like any other, in seconds."""

from __future__ import annotations

import json

import pytest
import torch
from blindformer.approximations import Plan, calibrate
from blindformer.models.data import DataError
from blindformer.models.distillation import DistillError, distill, train_head
from blindformer.models.distillation.head import logistic
from blindformer.models.judging.evaluation import clear_answers, torch_answers
from blindformer.models.loading.heads import SentenceClassifier
from blindformer.models.loading.load import load

from .conftest import FAST, sentences


@pytest.fixture(scope="module")
def data():
    return sentences(60)


@pytest.fixture(scope="module")
def trained(tiny_encoder, data, tmp_path_factory):
    """Of an encoder that comes with a plan of its own."""
    loaded = load(tiny_encoder)
    plan = calibrate(loaded.model, loaded.examples(data.train.texts, 16), Plan.preset("faithful"))
    folder = tmp_path_factory.mktemp("head") / "out"
    loaded.plan = lambda: plan  # type: ignore[method-assign]
    return train_head(loaded, data, folder)


def test_the_folder_answers_as_the_report_says(trained, data):
    loaded = load(trained.folder)
    assert (loaded.kind, loaded.labels) == ("classifier", {0: "negative", 1: "positive"})
    answers = torch_answers(loaded, data.test.texts, 64, loaded.plan()).predicted
    right = sum(answers[i] == label for i, label in enumerate(data.test.labels))
    assert right / len(data.test) == pytest.approx(trained.report["accuracy"]["test"])
    assert json.loads((trained.folder / "head.json").read_text()) == trained.report


def test_parties_answer_alike(trained, data):
    loaded, texts = load(trained.folder), data.test.texts[:6]
    expected = torch_answers(loaded, texts, 16, loaded.plan()).predicted
    assert clear_answers(loaded, texts, 16, loaded.plan(), data.train.texts).predicted == expected


def test_it_is_a_teacher_like_any_other(trained, data, tmp_path):
    student = load(distill(trained.folder, data, tmp_path / "out", "fast", augment=0, **FAST).folder)
    assert isinstance(student.model, SentenceClassifier)
    wanted, answers = (torch_answers(one, data.test.texts, 16, one.plan()) for one in (load(trained.folder), student))
    alike = sum(a == b for a, b in zip(answers.predicted, wanted.predicted, strict=True))
    assert alike / len(data.test) > 0.8


def test_the_encoder_is_left_as_it_is(trained, tiny_encoder):
    ours, theirs = load(trained.folder).model.model.state_dict(), load(tiny_encoder).model.model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_classes_that_a_plane_divides_are_divided():
    torch.manual_seed(0)
    x = torch.randn(200, 5) * torch.tensor([1.0, 10.0, 0.1, 1.0, 1.0]) + 3.0
    y = (x[:, 2] > 3.0).long()
    assert (logistic(x, y, 2, 1e-4)(x).argmax(-1) == y).float().mean() > 0.97


def test_a_feature_that_hardly_varies_gets_no_large_weight():
    torch.manual_seed(0)
    x = torch.randn(200, 5) * torch.tensor([1.0, 1.0, 1e-6, 1.0, 1.0])
    assert logistic(x, (x[:, 2] > 0).long(), 2, 1e-4).weight.abs().max() < 20.0


def test_what_cannot_have_a_head_is_refused(trained, tiny_encoder, tiny_classifier, data, tmp_path):
    with pytest.raises(DistillError, match="is no sentence encoder, whose embeddings a head reads; give minilm-fast"):
        train_head(tiny_classifier, data, tmp_path / "a")
    with pytest.raises(DistillError, match="holds a model already; give a new folder"):
        train_head(tiny_encoder, data, trained.folder)
    for file, contents in (("client/versions.json", "a compiled model"), ("notes.txt", r"other files \(notes.txt\)")):
        other = tmp_path / contents[:5]
        (other / file).parent.mkdir(parents=True)
        (other / file).write_text("")
        with pytest.raises(DistillError, match=f"holds {contents} already; give a new folder"):
            train_head(tiny_encoder, data, other)
    with pytest.raises(DataError, match="these examples are images"):
        train_head(tiny_encoder, "digits", tmp_path / "b")
