"""A model that was trained for it, at 128 bits: tests/data/digits-he on images that training never saw."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from blindformer.models.artifacts import load_server
from blindformer.models.artifacts.client import sources_of
from blindformer.models.building import compile_folder
from blindformer.models.data import load_data
from blindformer.models.loading.media import image_of
from blindformer.parties.client.client import EncryptedClient
from blindformer.protocols.ckks.parameters import DEVIATION
from blindformer.tests.parties.service.answers import clear

pytest.importorskip("tenseal")
pytest.importorskip("sklearn", reason="scikit-learn ships the digits")

MODEL = Path(__file__).parents[3] / "data" / "digits-he"
ERROR = 2.0**-10 + 6 * DEVIATION
"""Of a logit. They reach 40, and most of it are the roundings of `clear`."""


TEXTS, COUNT = 8, 16


def images(examples, count):
    return [image_of(pixels) for pixels in examples.items[:count]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(folder, the split's test part)"""
    data = load_data("digits", seed=0)  # the split that it was trained with
    return compile_folder(
        MODEL, tmp_path_factory.mktemp("digits"), calibration=images(data.train, 64), texts=TEXTS
    ), data.test


def test_digits_are_read_from_ciphertexts_as_clear_reads_them(compiled):
    folder, test = compiled
    with EncryptedClient("local", folder=folder) as client:
        texts = client.part.for_length().texts
        assert texts == TEXTS
        results = client.query_many(images(test, COUNT))
        questions = [client.part.encode(image) for image in images(test, COUNT)]
    part = load_server(folder / "server").for_length()
    expected = torch.cat(
        [clear(part, sources_of(questions[at : at + texts]))["logits"] for at in range(0, COUNT, texts)]
    )
    logits = torch.cat([result.outputs["logits"] for result in results])
    assert (logits - expected).abs().max() < ERROR
    assert logits.argmax(-1).tolist() == expected.argmax(-1).tolist()
    right = [result.value[0]["label"] == str(label) for result, label in zip(results, test.labels, strict=False)]
    assert sum(right) >= 14
    moved = results[0].report.online_bytes + results[-1].report.online_bytes
    assert moved < COUNT * 300_000, "bytes of request and reply"


@pytest.mark.slow
def test_evaluate_judges_through_ciphertexts(report_of):
    asked = ("evaluate", MODEL, "--data", "digits", "--protocol", "torch,clear,ckks", "--private", "10")
    (evaluation,) = report_of(*asked)["evaluations"]
    *_, trained, clear, ckks = evaluation["rows"]
    assert trained["accuracy"]["value"] > 0.94 < clear["accuracy"]["value"]
    assert (ckks["protocol"], ckks["count"], ckks["agreement"]["clear"]["value"]) == ("ckks", 10, 1.0)
