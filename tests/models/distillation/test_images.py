"""A compact Transformer of patches, trained from nothing, and its student."""

import pytest
import torch
from blindformer.models.data import RawExamples
from blindformer.models.data.load import split
from blindformer.models.distillation import distill
from blindformer.models.loading.load import load

SMALL = {"teacher_epochs": 8, "logit_epochs": 4, "hidden": 16, "heads": 2}


def bright(count):
    """Which half is bright, the upper or the lower?"""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 80, (count, 8, 8), generator=generator)
    labels = [i % 2 for i in range(count)]
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 120
    return split("halves", RawExamples(images.byte(), labels, ("upper", "lower")), 0)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return distill("vit", bright(160), tmp_path_factory.mktemp("vit"), "he", **SMALL)


def test_it_learns_with_torchs_functions_and_then_with_the_plans(student):
    accuracy = student.report["validation_accuracy"]
    assert accuracy["teacher"] == 1.0
    assert accuracy["student"] >= 0.9


def test_its_processor_makes_what_it_was_trained_on(student):
    image = pytest.importorskip("PIL.Image")
    loaded, grey = load(student.folder), bright(160).test.inputs[0]
    pixels = loaded.encode_file(image.fromarray(grey.numpy()))["pixel_values"]
    assert (pixels[0] - (grey.float() / 127.5 - 1.0)).abs().max() < 1e-5
