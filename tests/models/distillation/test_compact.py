"""A compact student: its teacher's words, a width of its own, and a folder like any other."""

import pytest
import torch
from blindformer.approximations import approximate
from blindformer.models.compile import compile
from blindformer.models.data import Dataset, Examples
from blindformer.models.distillation import distill
from blindformer.models.loading.load import load
from blindformer.tests.models.distillation.conftest import sentences

SMALL = {"hidden": 16, "layers": 1, "teacher_epochs": 1, "logit_epochs": 2, "augment": 1, "length": 16}


@pytest.fixture(scope="module")
def student(encoder, few, tmp_path_factory):
    return distill(encoder, few, tmp_path_factory.mktemp("compact"), "he", transfer=sentences(60, seed=1), **SMALL)


def test_its_words_are_the_teachers(student):
    ours, theirs = load(student.folder).model, load(student.folder / "teacher").model
    assert torch.equal(ours.get_input_embeddings().weight, theirs.get_input_embeddings().weight)


def test_texts_without_labels_are_learned_from_but_not_those_it_is_judged_by(student, encoder, few, tmp_path):
    assert student.report["transfer"] == {"name": "sentences", "texts": 60}
    known = Dataset("known", "text", few.labels, few.test, few.validation, Examples(["it is red"], [0]), {})
    distilled = distill(encoder, few, tmp_path / "out", "he", transfer=known, **{**SMALL, "logit_epochs": 1})
    assert distilled.report["transfer"]["texts"] == 1


def test_the_client_s_part_ends_with_the_projection(student):
    """And computes the norm in it exactly: plan `he` holds for what is encrypted."""
    loaded = load(student.folder)
    assert student.plan.choice("layer_norm", "electra.embeddings.LayerNorm").name == "exact"
    batch = loaded.encode("it is good", 16)
    compiled = compile(loaded.model, batch, student.plan, outputs=["logits"])
    assert "electra.embeddings_project.weight" in compiled.program.released
    assert not any("encoder" in name for name in compiled.program.released)
    approximate(loaded.model, student.plan)
    assert loaded.model(**batch).logits.shape == (1, 2)
