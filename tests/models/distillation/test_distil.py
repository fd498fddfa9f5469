"""A small student learns to compute with `fast`, and the folder it is stored in is like any other."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from blindformer.approximations import Plan, PlanError, approximate, calibrate, restore
from blindformer.models.compile import compile
from blindformer.models.data import DataError, Examples
from blindformer.models.distillation import DistillError, distill
from blindformer.models.distillation.batches import in_order, tokenise
from blindformer.models.distillation.checkpoints import locked
from blindformer.models.loading.load import load
from blindformer.tests.pages import execute

from ..conftest import clear
from .conftest import FAST


@pytest.fixture(scope="module")
def student(encoder, data, tmp_path_factory):
    """Distilled with rates that suit a model of this size, and the teacher that was trained for it."""
    out = tmp_path_factory.mktemp("distilled") / "out"
    rates = {"teacher_rate": 2e-3, "hidden_rate": 2e-3, "logit_rate": 5e-4}
    return distill(encoder, data, out, "fast", **rates, teacher_epochs=6, hidden_epochs=3, logit_epochs=3, batch=16)


def answers(loaded, examples: Examples, plan: Plan | None = None) -> torch.Tensor:
    """Logits of all texts, in torch."""
    tokens = tokenise(loaded, examples, 64)
    if plan is not None:
        approximate(loaded.model, plan)
    try:
        with torch.no_grad():
            batches = in_order(tokens.lengths, 32)
            logits = torch.cat([loaded.model(**tokens.batch(indices)).logits for indices in batches])
    finally:
        restore(loaded.model)
    return logits[torch.argsort(torch.tensor([i for indices in batches for i in indices]))]


def accuracy(logits: torch.Tensor, examples: Examples) -> float:
    return float((logits.argmax(-1) == torch.tensor(examples.labels)).float().mean())


def test_distilling_beats_approximating_alone(student, data):
    teacher, pupil, test = load(student.folder / "teacher"), load(student.folder), data.test
    calibration = [tokenise(teacher, data.train.subset(64), 64).batch(range(64))]
    expected = answers(teacher, test)
    untouched = answers(teacher, test, calibrate(teacher.model, calibration, "fast"))
    distilled = answers(pupil, test, pupil.plan())
    assert accuracy(expected, test) > 0.85
    assert accuracy(untouched, test) < 0.7
    assert accuracy(distilled, test) > 0.85

    def divergence(logits):
        return float(F.kl_div(logits.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"))

    assert divergence(distilled) < divergence(untouched) / 5


def test_each_stage_makes_its_own_loss_smaller(student):
    history = student.report["history"]
    assert list(history) == ["teacher", "hidden", "logits"]
    for stage, name in (("teacher", "loss"), ("hidden", "validation_loss"), ("logits", "soft")):
        assert history[stage][-1][name] < history[stage][0][name]


def test_the_folder_is_a_transformers_model_with_a_calibrated_plan(student):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(student.folder)
    tokenizer = AutoTokenizer.from_pretrained(student.folder)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model(**tokenizer("good red password", return_tensors="pt")).logits.shape == (1, 2)
    plan = load(student.folder).plan()
    assert plan == student.plan
    assert plan.name == "fast"
    assert plan.ranges
    assert plan.fits
    report = json.loads((student.folder / "distillation.json").read_text())
    assert report["validation_accuracy"] == student.report["validation_accuracy"]
    assert {p.name for p in student.folder.iterdir()} >= {"teacher", "plan.json", "config.json", "model.safetensors"}
    assert not (student.folder / ".distillation").exists()


def test_the_pages_own_lines_load_it(student, data, tmp_path, monkeypatch):
    (tmp_path / "student").symlink_to(student.folder)
    monkeypatch.chdir(tmp_path)
    names, loaded = execute("student", {}), load(student.folder)
    tokens = loaded.processor(data.test.texts[:1], return_tensors="pt")
    with torch.no_grad():
        logits = names["model"](**tokens).logits
    torch.testing.assert_close(logits, answers(loaded, data.test.take([0]), loaded.plan()), atol=1e-4, rtol=1e-4)


def test_no_text_of_the_data_is_stored(student, data):
    texts = [t for t in data.train.texts if len(t.split()) > 6]
    for file in student.folder.rglob("*"):
        if file.suffix in (".json", ".txt"):
            content = file.read_text(encoding="utf-8", errors="ignore")
            assert not any(text in content for text in texts)


def test_the_student_in_training_is_the_student_that_runs(student):
    """Exact divisions in training, fitted ones afterwards: the same answers."""
    accuracies = student.report["validation_accuracy"]
    assert accuracies["student"] == accuracies["student_in_training"]
    assert student.report["sites_out_of_range"] == []


def test_it_runs_in_fixed_point_as_in_torch(student, data):
    loaded, plan = load(student.folder), load(student.folder).plan()
    calibration = [loaded.encode(text, 16, truncate=True) for text in data.train.texts[:24]]
    compiled = compile(loaded.model, calibration, plan)
    expected = answers(loaded, data.test, plan)
    for text, wanted in zip(data.test.texts[:12], expected, strict=False):
        logits = clear(compiled, loaded.encode(text, 16))["logits"][0]
        assert (logits - wanted).abs().max() < 0.02 * expected.abs().max()


@pytest.fixture(scope="module")
def quick(student, few, tmp_path_factory):
    return distill(student.folder / "teacher", few, tmp_path_factory.mktemp("quick") / "out", **FAST)


def test_a_classifier_is_a_teacher_as_it_is(quick):
    assert list(quick.report["history"]) == ["hidden", "logits"]
    assert not (quick.folder / "teacher").exists()


def test_a_plan_with_exceptions_by_layer(student, few, tmp_path):
    plan = Plan.preset("fast").replace(
        name="mixed", overrides={"bert.encoder.layer.0.*": {"gelu": "fourier", "softmax": "exp"}}, linear_bits=16
    )
    distilled = distill(student.folder / "teacher", few, tmp_path / "out", plan, **FAST)
    assert distilled.plan.overrides == plan.overrides
    assert "cut" in distilled.plan.fits["bert.encoder.layer.0.intermediate.intermediate_act_fn/gelu"]


def test_products_in_bfloat16_leave_a_student_in_float32(student, quick, few, tmp_path):
    distilled = distill(student.folder / "teacher", few, tmp_path / "out", bfloat16=True, **FAST)
    ours, theirs = load(distilled.folder).model, load(quick.folder).model
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(a.dtype == torch.float32 for a, _ in pairs)
    assert any(not torch.equal(a, b) for a, b in pairs)
    with torch.no_grad():
        assert max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs) < 0.05


# What is refused, and how.


ELSEWHERE = Plan.preset("fast").replace(overrides={"decoder.block.*": {"gelu": "fourier"}})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"teacher": "tiny_classifier"}, DataError, "labels are negative, positive, the model's are calm, glad, cross"),
        ({"teacher": "tiny_vision"}, DataError, "has no tokenizer, so it takes no text"),
        ({"plan": ELSEWHERE}, PlanError, r"the model has no module 'decoder.block.\*'"),
        ({"out": "student"}, DistillError, "holds a model already; give a new folder"),
        ({"out": "locked"}, DistillError, "another process distils into it"),
        ({"layers": 3}, DistillError, "3 layers: the model has 2; give a number from 1 to 2"),
        ({"speed": 3}, DistillError, "unknown setting 'speed': use one of seed, layers"),
        ({"plan": "he", "hidden": 64, "hidden_epochs": 0}, DistillError, "at most the teacher's 32"),
        ({"plan": "he", "hidden": 16}, DistillError, "have no teacher's states"),
        ({"teacher": "vit", "embeddings": True}, DistillError, "are of texts, and vit is a teacher of images"),
    ],
)
def test_what_cannot_be_distilled_is_refused(request, student, few, tmp_path, changes, error, message):
    given = {"teacher": student.folder / "teacher", "out": tmp_path / "out", "plan": "fast", **FAST, **changes}
    teacher, out, plan = (given.pop(name) for name in ("teacher", "out", "plan"))
    if str(teacher).startswith("tiny_"):
        teacher = request.getfixturevalue(teacher)
    with locked(tmp_path / "locked"), pytest.raises(error, match=message):
        distill(teacher, few, student.folder if out == "student" else tmp_path / out, plan, **given)


def test_a_loss_that_diverges_names_the_layer_and_keeps_the_checkpoint(student, few, tmp_path):
    out = tmp_path / "out"
    wild = {**FAST, "hidden_rate": 1e4, "warm_up": 0.0, "clip": 1e9, "checkpoint_steps": 1, "hidden_epochs": 5}
    with pytest.raises(DistillError, match=r"stage hidden, step \d+: .* not finite|is (nan|inf)") as error:
        distill(student.folder / "teacher", few, out, **wild)
    kept = out / ".distillation" / "hidden.safetensors"
    assert "bert." in str(error.value)
    assert f"the last good checkpoint is {kept}" in str(error.value)
    from safetensors.torch import load_file

    assert all(bool(t.isfinite().all()) for t in load_file(kept).values())
