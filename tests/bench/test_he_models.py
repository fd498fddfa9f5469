"""The figures of a compact model on ciphertexts: every key, and answers that are those of `clear`."""

import json

import pytest
from blindformer.bench import he_models
from blindformer.models.distillation import distill
from blindformer.tests.models.distillation.test_images import SMALL, bright

pytest.importorskip("tenseal")


@pytest.mark.slow  # a ring of 16384 at 128 bits: 20 s for keys and two requests
def test_an_image_model_at_128_bits(tmp_path, monkeypatch, capsys):
    data = bright(160)
    distill("vit", data, tmp_path / "halves", "he", **SMALL)
    monkeypatch.setattr(he_models, "load_data", lambda name, **options: data)
    arguments = [str(tmp_path / "halves"), "--data", "halves", "--rows", "4", "--count", "8", "--format", "json"]
    assert he_models.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["degree"], found["levels"], found["model"]) == (16384, 6, "halves")
    assert found["ckks"]["same_as_clear"] == found["ckks"]["asked"] == 8
    assert found["ckks"]["largest_error"] < 2.0**-10  # most of it are clear's roundings
    assert set(found["ckks"]["cpu_s_by_layer"]) == set(found["levels_by_layer"])
    assert found["accuracy"]["torch"]["value"] > 0.9
    assert str(tmp_path) not in json.dumps(found)
