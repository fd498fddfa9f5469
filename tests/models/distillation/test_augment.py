"""Variants of training texts: of their words alone, without labels, and the same for the same seed."""

from __future__ import annotations

from blindformer.models.data import Examples
from blindformer.models.distillation.batches import UNLABELLED, with_variants
from hypothesis import given
from hypothesis import strategies as st

WORDS = ["a", "good", "bad", "film", "it", "was", "not"]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS)).map(" ".join), min_size=1, max_size=8)


@given(TEXTS, st.integers(1, 4), st.integers(0, 2**31))
def test_variants_follow_the_examples(texts, copies, seed):
    examples = Examples(texts, [i % 2 for i in range(len(texts))])
    variants = with_variants(examples, copies, seed)
    assert variants.texts[: len(texts)] == texts
    assert variants.labels[: len(texts)] == examples.labels
    assert len(variants) == len(texts) * (1 + copies)
    assert set(variants.labels[len(texts) :]) == {UNLABELLED}
    known = {word for text in texts for word in text.split()}
    assert {word for text in variants.texts for word in text.split()} <= known
    assert variants.texts == with_variants(examples, copies, seed).texts


def test_most_variants_are_new_texts():
    texts = [f"sentence number {i} of this set says what it says" for i in range(50)]
    variants = with_variants(Examples(texts, [0] * 50), 3, seed=0).texts[50:]
    assert len(set(variants) - set(texts)) > 100
    assert variants != with_variants(Examples(texts, [0] * 50), 3, seed=1).texts[50:]
