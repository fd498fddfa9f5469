"""The parts of a distillation, each by what it promises."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
import transformers as tf
from blindformer.approximations import Plan, approximate, find_kind
from blindformer.models.data import Examples
from blindformer.models.distillation import DistillError
from blindformer.models.distillation.batches import UNLABELLED, Tokens, epoch_batches, tokenise, with_variants
from blindformer.models.distillation.ranges import RangePenalty, blame, extremes
from blindformer.models.distillation.stages import States, TeacherStates, answer_loss, state_loss, states_of
from blindformer.models.distillation.student import in_training
from blindformer.models.distillation.teacher import classifier_of
from blindformer.models.loading.layers import spread, with_layers
from blindformer.models.loading.load import load
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def loaded(encoder):
    return load(encoder)


@pytest.fixture(scope="module")
def teacher(loaded):
    return classifier_of(loaded, ("negative", "positive"), seed=0)


@pytest.fixture(scope="module")
def tokens(loaded, few):
    return tokenise(loaded, few.train, 64)


def test_a_causal_model_without_padding_becomes_a_classifier_of_batches(tiny_causal):
    """It takes any token for padding: its answer is that of the last token before it, however long the others are."""
    causal = load(tiny_causal)
    model = classifier_of(causal, ("negative", "positive"), seed=0)
    rows = tokenise(causal, Examples(["how is my password", "the red"], [0, 1]), 64)
    with torch.no_grad():
        both, alone = (model(**rows.batch(some)).logits for some in ([0, 1], [1]))
    torch.testing.assert_close(both[1:], alone)


# Batches.


@given(st.lists(st.integers(1, 60), min_size=1, max_size=100), st.integers(1, 20), st.integers(0, 3))
def test_an_epoch_sees_every_text_once_in_batches_of_like_lengths(lengths, size, epoch):
    batches = epoch_batches(lengths, size, 0, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) <= size for batch in batches)
    for one, other in combinations(([lengths[i] for i in batch] for batch in batches), 2):
        assert min(other) > max(one) - 4 or min(one) > max(other) - 4
    assert batches == epoch_batches(lengths, size, 0, epoch)


def test_epochs_and_seeds_differ():
    lengths = list(range(10)) * 10
    one, two, three = (epoch_batches(lengths, 8, *which) for which in ((0, 0), (0, 1), (1, 0)))
    assert one != two != three != one


def test_a_batch_is_padded_to_a_multiple_of_eight_or_to_a_given_length():
    tokens = Tokens({"input_ids": [[1, 2, 3], [4] * 9], "attention_mask": [[1] * 3, [1] * 9]},
                    {"input_ids": 7, "attention_mask": 0}, torch.tensor([0, 1]))  # fmt: skip
    batch = tokens.batch([1, 0])
    assert batch["input_ids"].shape == (2, 16)
    assert batch["input_ids"][1].tolist() == [1, 2, 3] + [7] * 13
    assert batch["attention_mask"].sum(1).tolist() == [9, 3]
    assert tokens.batch([1], length=4)["input_ids"].tolist() == [[4] * 4]


# States and losses.


def test_states_leave_padding_out(teacher, tokens):
    teacher.set_attn_implementation("eager")
    indices = [0, 1, 2]
    states = states_of(teacher, tokens.batch(indices), deep=True)
    sizes = [tokens.lengths[i] for i in indices]
    assert [h.shape for h in states.hidden] == [(sum(sizes), 32)] * 3
    assert [a.shape for a in states.attention] == [(sum(n * n for n in sizes), 2)] * 2
    alone = states_of(teacher, tokens.batch([1]), deep=True)
    torch.testing.assert_close(
        states.hidden[-1][sizes[0] : sizes[0] + sizes[1]], alone.hidden[-1], atol=1e-5, rtol=1e-4
    )


def test_kept_states_are_the_teachers_own_whatever_the_batch(teacher, tokens):
    teacher.set_attn_implementation("eager")
    kept = TeacherStates(teacher, tokens, layers=[1], deep=True, cache_mb=100, bfloat16=False)
    fresh = TeacherStates(teacher, tokens, layers=[1], deep=True, cache_mb=0, bfloat16=False)
    indices = [5, 3, 60]
    batch = tokens.batch(indices)
    for a, b in ((kept(indices, batch), fresh(indices, batch)), (kept(indices, {}), kept(indices, batch))):
        assert (len(a.hidden), len(a.attention)) == (2, 1)
        for x, y in zip([a.logits, *a.hidden, *a.attention], [b.logits, *b.hidden, *b.attention], strict=True):
            torch.testing.assert_close(x.float(), y.float(), atol=2e-3, rtol=2e-3)


def test_the_state_loss_is_relative_to_each_layers_size():
    teacher = States(torch.zeros(1), [torch.randn(50, 8), 100 * torch.randn(50, 8)], [torch.rand(20, 2)])
    hidden, attention = ([x + 0.1 * x.std() for x in part] for part in (teacher.hidden, teacher.attention))
    off = States(torch.zeros(1), hidden, attention)
    total, parts = state_loss(off, teacher, attention_weight=2.0)
    assert parts["hidden"] == pytest.approx(0.01, rel=1e-3)
    assert total.item() == pytest.approx(0.03, rel=1e-3)
    assert state_loss(teacher, teacher, 1.0)[0].item() == 0.0


def test_the_answer_loss_is_as_published():
    student, teacher, labels = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 0.5]]), torch.tensor([1])
    total, parts = answer_loss(student, teacher, labels, temperature=2.0, soft_weight=0.7)
    p = [math.exp(v) / (math.exp(1.0) + math.exp(0.25)) for v in (1.0, 0.25)]
    q = [math.exp(v) / (math.exp(0.5) + math.exp(-0.5)) for v in (0.5, -0.5)]
    soft = 4 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    hard = -math.log(math.exp(-1.0) / (math.exp(1.0) + math.exp(-1.0)))
    assert parts == {"soft": pytest.approx(soft, rel=1e-5), "hard": pytest.approx(hard, rel=1e-5)}
    assert total.item() == pytest.approx(0.7 * soft + 0.3 * hard, rel=1e-5)


def test_texts_without_a_label_count_for_their_teachers_answer_alone():
    logits = torch.randn(3, 2)
    total, parts = answer_loss(logits, logits + 0.1 * torch.randn(3, 2), torch.tensor([-1, -1, -1]), 1.0, 0.5)
    assert "hard" not in parts
    assert total.item() == pytest.approx(0.5 * parts["soft"])


# The student.


@pytest.mark.parametrize(("layers", "of", "kept"), [(3, 6, [1, 3, 5]), (6, 6, [0, 1, 2, 3, 4, 5]), (1, 6, [5]),
                                                    (4, 6, [1, 2, 3, 5]), (2, 12, [5, 11])])  # fmt: skip
def test_a_compact_student_keeps_layers_evenly_and_the_last(layers, of, kept):
    assert spread(layers, of) == kept
    for wrong in (0, of + 1):
        with pytest.raises(DistillError, match=f"the model has {of}"):
            spread(wrong, of)


@pytest.mark.parametrize("layers", [[1], [0, 1]])
def test_a_student_starts_with_its_teachers_layers_and_is_a_model_of_its_own(teacher, layers):
    smaller = approximate(with_layers(teacher, layers), "fast")
    theirs = teacher.state_dict()
    assert smaller.config.num_hidden_layers == len(layers)
    for name, value in smaller.state_dict().items():
        assert torch.equal(value, theirs[name.replace("layer.0.", f"layer.{layers[0]}.")]), name
    with torch.no_grad():
        next(smaller.parameters()).add_(1.0)
    assert not torch.equal(next(smaller.parameters()), next(teacher.parameters()))


def test_layers_that_are_not_alike_are_refused_in_one_line():
    """T5's first layer has the table of relative positions."""
    config = tf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=3, num_heads=2)
    with pytest.raises(DistillError, match=r"its layers are not alike .*; leave --layers out"):
        with_layers(tf.T5EncoderModel(config), [1, 2])


def test_in_training_what_is_far_from_a_division_is_trained_with():
    norm = {"a/layer_norm": {"inverse_deviation": 0.5}, "a/rsqrt": {"exponent": 0.0, "coefficients": [1.0]}}
    plan = Plan.preset("he").replace(fits=norm, ranges={"a/layer_norm": (4.0, 4.0)}, rsqrt="goldschmidt")
    trained_with = in_training(plan)
    assert trained_with.layer_norm.name == "affine"
    assert trained_with.rsqrt.name == "exact"
    assert trained_with.fits == {"a/layer_norm": {"inverse_deviation": 0.5}}
    assert trained_with.ranges == {}


def test_in_training_divisions_are_exact_and_the_rest_is_the_plans():
    plan = Plan.preset("fast").replace(overrides={"a.*": {"layer_norm": "goldschmidt", "gelu": "fourier"}})
    trained_with = in_training(plan)
    assert {trained_with.layer_norm.name, trained_with.rsqrt.name, trained_with.reciprocal.name} == {"exact"}
    assert (trained_with.gelu, trained_with.softmax, trained_with.linear_bits) == (
        plan.gelu,
        plan.softmax,
        plan.linear_bits,
    )
    assert list(trained_with.overrides["a.*"]) == ["gelu"]


# Ranges.

LIMIT = find_kind("gelu").limit


def test_what_is_outside_costs_its_square_and_pulls_inwards():
    penalty = RangePenalty()
    penalty("x/gelu", "gelu", torch.linspace(-LIMIT, LIMIT, 20).view(2, 10))
    penalty("x/layer_norm", "layer_norm", torch.tensor([[1.0], [2.0], [4.0]]))
    assert penalty.take().item() == 0.0  # inside
    x = torch.tensor([[LIMIT + 2.0, 0.0], [0.0, -LIMIT - 1.0]], requires_grad=True)
    penalty("x/gelu", "gelu", x)
    total = penalty.take()
    assert total.item() == pytest.approx((4 + 1) / 2)
    total.backward()
    assert x.grad.tolist() == [[2.0, 0.0], [0.0, -1.0]]
    assert penalty.take().item() == 0.0


def test_variances_are_held_together_whatever_their_size():
    penalty = RangePenalty()
    for size in (1.0, 1e-3, 1e3):
        penalty("x/layer_norm", "layer_norm", size * torch.tensor([[1.0], [1.0], [1.0], [2.0**8]]))
        assert penalty.take().item() == pytest.approx((6 - 3) ** 2 / 4, rel=1e-3)


def test_the_layer_that_left_its_range_is_named(teacher, tokens):
    student, batch = approximate(with_layers(teacher, [0, 1]), "fast"), tokens.batch([0, 1])
    start = extremes(student, batch)
    with torch.no_grad():
        student.bert.encoder.layer[1].intermediate.dense.weight.mul_(1e4)
    text = blame(extremes(student, batch), start)
    assert text.startswith("bert.encoder.layer.1.intermediate.intermediate_act_fn/gelu sees [")
    with torch.no_grad():
        student.bert.encoder.layer[0].intermediate.dense.bias.fill_(math.nan)
    assert blame(extremes(student, batch), start).startswith("bert.encoder.layer.0.intermediate")


# Variants of training texts: of their words alone, without labels, and the same for the same seed.

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
