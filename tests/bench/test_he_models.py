"""The figures of a compact model on ciphertexts: every key, and answers that are those of `clear`."""

import json

import pytest
from blindformer.bench import he_models
from blindformer.models.distillation import distill
from blindformer.tests.models.distillation.test_images import SMALL, bright

pytest.importorskip("tenseal")


@pytest.mark.slow  # a ring of 16384 at 128 bits: 20 s for keys and two requests
def test_an_image_model_at_128_bits(tmp_path, monkeypatch, measured):
    data = bright(160)
    distill("vit", data, tmp_path / "halves", "he", **SMALL)
    monkeypatch.setattr(he_models, "load_data", lambda name, **options: data)
    report = measured(he_models, tmp_path / "halves", "--data", "halves", "--rows", 4, "--count", 8)
    assert (report["degree"], report["levels"], report["model"]) == (16384, 6, "halves")
    assert report["ckks"]["same_as_clear"] == report["ckks"]["asked"] == 8
    assert report["ckks"]["largest_error"] < 2.0**-10  # most of it are clear's roundings
    assert set(report["ckks"]["cpu_s_by_layer"]) == set(report["levels_by_layer"])
    assert report["accuracy"]["torch"]["value"] > 0.9
    assert str(tmp_path) not in json.dumps(report)
