"""A data set's parts: disjoint, stratified, the same for the same seed, and free of copies."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from blindformer.models.data import DataError, RawExamples
from blindformer.models.data.dataset import stratified
from blindformer.models.data.load import cleaned, split
from hypothesis import given
from hypothesis import strategies as st


def rows(count: int, classes: int = 2, **more) -> RawExamples:
    texts = [f"sentence number {i}" for i in range(count)]
    return RawExamples(texts, [i % classes for i in range(count)], tuple("abcdefgh"[:classes]), **more)


@pytest.mark.parametrize(("count", "classes", "sizes"), [(100, 2, [72, 8, 20]), (150, 3, [108, 12, 30])])
def test_parts_are_disjoint_complete_and_stratified(count, classes, sizes):
    data = split("x", rows(count, classes), seed=0)
    parts = [data.train, data.validation, data.test]
    assert [len(p) for p in parts] == sizes
    assert sorted(t for p in parts for t in p.texts) == sorted(rows(count).inputs)
    for part in parts:
        assert set(Counter(part.labels).values()) == {len(part) // classes}
        assert all(
            int(text.split()[-1]) % classes == label for text, label in zip(part.texts, part.labels, strict=True)
        )


def test_the_seed_decides():
    same, again, other = (split("x", rows(50), seed=s).test.texts for s in (1, 1, 2))
    assert same == again != other


@given(st.lists(st.integers(0, 4), min_size=1, max_size=80), st.data())
def test_a_stratified_share_of_every_class_is_within_one_of_exact(labels, data):
    count = data.draw(st.integers(0, len(labels)))
    taken, left = stratified(labels, count, 0)
    assert len(taken) == count
    assert sorted(taken + left) == list(range(len(labels)))
    counts = Counter(labels[i] for i in taken)
    for label, size in Counter(labels).items():
        assert math.floor(size * count / len(labels)) <= counts[label] <= math.ceil(size * count / len(labels))


def test_copies_go_and_the_first_stays():
    texts = ["Good film.", "good   film", "GOOD FILM!", "bad film", "Bad &amp; long", "bad & long", *"cdef"] * 3
    data_set = split(
        "x", RawExamples(texts, [0, 0, 0, 1, 1, 1, 0, 1, 0, 1] * 3, ("n", "p")), 0, test=0.3, validation=0.4
    )
    kept = sorted(t for p in (data_set.train, data_set.validation, data_set.test) for t in p.texts)
    assert kept == sorted(["Good film.", "bad film", "Bad & long", *"cdef"])
    assert data_set.dropped == {"bad": 0, "duplicate": 23, "contradictory": 0, "empty": 0}


def test_texts_with_two_labels_go_altogether_and_empty_ones_too():
    base = rows(20)
    mixed = RawExamples([*base.inputs, "both", "Both!", " ", ""], [*base.labels, 0, 1, 0, 0], base.names)
    data_set = split("x", mixed, 0)
    assert data_set.dropped == {"bad": 0, "duplicate": 0, "contradictory": 2, "empty": 2}
    assert len(data_set.train) + len(data_set.validation) + len(data_set.test) == 20


def test_nothing_of_a_given_test_part_is_trained_on():
    texts = [*(f"t{i}" for i in range(20)), "Copy.", *(f"u{i}" for i in range(6)), "copy"]
    parts = ["train"] * 21 + ["test"] * 7
    data_set = split(
        "x",
        RawExamples(texts, [i % 2 for i in range(20)] + [0] + [i % 2 for i in range(6)] + [0], ("n", "p"), parts),
        0,
    )
    assert data_set.test.texts == [*(f"u{i}" for i in range(6)), "copy"]
    assert "Copy." not in data_set.train.texts + data_set.validation.texts


def test_entities_spaces_and_disguised_punctuation_are_repaired():
    assert cleaned("  fish &amp; chips \x96 it&#39;s\ngood ") == "fish & chips \u2013 it's good"


def test_punctuation_alone_is_not_one_text():
    data_set = split("x", RawExamples([":)", ":(", *rows(20).inputs], [1, 0, *rows(20).labels], ("n", "p")), 0)
    assert data_set.dropped == {"bad": 0, "duplicate": 0, "contradictory": 0, "empty": 0}


def test_images_are_divided_and_deduplicated_alike():
    images = torch.arange(40, dtype=torch.uint8).repeat_interleave(4).reshape(40, 2, 2)
    data_set = split(
        "x", RawExamples(torch.cat([images, images[:5]]), [i % 2 for i in range(40)] + [0, 1, 0, 1, 0], ("n", "p")), 0
    )
    assert data_set.kind == "image"
    assert data_set.dropped["duplicate"] == 5
    assert all(
        int(image[0, 0]) % 2 == label for image, label in zip(data_set.test.inputs, data_set.test.labels, strict=True)
    )
    with pytest.raises(DataError, match="are images"):
        _ = data_set.test.texts


def test_subsets_are_stratified_and_in_order():
    data = split("x", rows(200), seed=0)
    part = data.train.subset(30, seed=3)
    assert Counter(part.labels) == {0: 15, 1: 15}
    assert [data.train.texts.index(t) for t in part.texts] == sorted(data.train.texts.index(t) for t in part.texts)
    assert data.train.subset(10_000) is data.train


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawExamples([], [], ("n", "p")), "holds no examples"),
        (RawExamples(["a", "b", "c"], [1, 1, 1], ("n", "p")), "every example is 'p'"),
        (
            RawExamples([f"t{i}" for i in range(30)], [0] * 29 + [1], ("n", "rare")),
            "'rare' has 1 examples, none of them for",
        ),
    ],
)
def test_what_cannot_be_divided_is_refused(raw, message):
    with pytest.raises(DataError, match=message):
        split("x", raw, 0)


# Labels of a model.


def test_labels_are_matched_by_name_whatever_their_order_and_case():
    data = split("x", rows(40), 0)
    turned = data.matched({0: "B", 1: "A", 2: "other"})
    assert turned.labels == ("B", "A", "other")
    assert turned.test.labels == [1 - y for y in data.test.labels]


@pytest.mark.parametrize(
    ("own", "models"), [("ab", ("LABEL_0", "LABEL_1")), ("ab", ("0", "1")), ("01", ("negative", "positive"))]
)
def test_names_of_no_meaning_are_matched_by_index(own, models):
    data = split("x", RawExamples(rows(40).inputs, rows(40).labels, tuple(own)), 0)
    data_set = data.matched(dict(enumerate(models)))
    assert data_set.labels == models
    assert data_set.train.labels == data.train.labels


@pytest.mark.parametrize("labels", [{0: "calm", 1: "cross"}, {0: "0", 1: "1", 2: "2"}])
def test_labels_that_do_not_match_are_named_on_both_sides(labels):
    with pytest.raises(DataError, match=f"its labels are a, b, the model's are {', '.join(labels.values())}"):
        split("x", rows(40), 0).matched(labels)
