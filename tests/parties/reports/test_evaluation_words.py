"""What is counted in an evaluation is called by its own word."""

from __future__ import annotations

import pytest
from blindformer.models.loading.media import word_of_kind
from blindformer.parties.reports.evaluation import Evaluation


@pytest.mark.parametrize(
    ("lengths", "items", "seconds", "tested"),
    [
        ({0: 8}, "images", "seconds an image", "8 test images"),
        ({16: 5, 32: 3}, "texts", "seconds a text", "8 test texts, cut at 128 tokens"),
    ],
)
def test_images_are_no_texts(lengths, items, seconds, tested):
    about = {"model": "m", "plan": "fast", "plan_hash": "", "data": "d", "labels": (), "seed": 0, "longest": 128}
    evaluation = Evaluation(**about, lengths=lengths, test=8, subset=0, rows=[], versions={})
    assert (evaluation.headings[2], evaluation.headings[-1], evaluation.tested) == (items, seconds, tested)


def test_a_model_is_asked_what_its_kind_takes():
    asked = [word_of_kind(kind) for kind in ("image", "sound", "classifier", "")]
    assert asked == ["image", "sound", "text", "text"]
