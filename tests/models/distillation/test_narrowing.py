"""A narrower student: heads that are alike are joined, features that weigh little are left out, and it still learns."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import transformers as tf
from blindformer.approximations import Plan, approximate
from blindformer.models.compile import compile
from blindformer.models.distillation import DistillError, distill
from blindformer.models.distillation.batches import in_order, tokenise
from blindformer.models.distillation.narrowing import arrange
from blindformer.models.distillation.refit import refit
from blindformer.models.distillation.student import in_training
from blindformer.models.distillation.teacher import embeddings_of
from blindformer.models.loading.layers import narrowed, widths
from blindformer.models.loading.load import load
from blindformer.parties.reports.estimate import estimate

SHORT = {"batch": 16, "hidden_rate": 1e-3, "hidden_epochs": 1}
HEADS, FEATURES = 2, 40  # of the narrower ones


@pytest.fixture(scope="module")
def sentences(encoder, tmp_path_factory):
    """The folder of an encoder with mean pooling and four heads a layer, the first and third of which attend alike."""
    folder = shutil.copytree(encoder, tmp_path_factory.mktemp("sentences") / "encoder")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    model = tf.BertModel.from_pretrained(folder, add_pooling_layer=False, num_attention_heads=4)
    with torch.no_grad():
        for layer in model.encoder.layer:
            for linear in (layer.attention.self.query, layer.attention.self.key):
                heads = linear.weight.unflatten(0, (4, -1))
                heads[2] = heads[0]
                linear.weight.mul_(4.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def batches(sentences, data):
    tokens = tokenise(load(sentences), data.train, 64)
    return [tokens.batch(indices) for indices in in_order(tokens.lengths, 32)]


@pytest.fixture
def model(sentences):
    return load(sentences).model


def test_another_order_of_heads_and_features_changes_no_answer(model, batches):
    other = copy.deepcopy(model)
    arrange(other, batches, HEADS, FEATURES)
    assert not torch.equal(
        other.model.encoder.layer[0].output.dense.weight, model.model.encoder.layer[0].output.dense.weight
    )
    with torch.no_grad():
        for batch in batches:
            expected, answer = (m(**batch).sentence_embedding for m in (model, other))
            torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)


def test_heads_that_attend_alike_become_neighbours(model, batches):
    arrange(model, batches, HEADS, None)
    for layer in model.model.encoder.layer:
        heads = layer.attention.self.query.weight.unflatten(0, (4, -1))
        assert torch.equal(heads[0], heads[1])


def test_the_features_that_weigh_most_come_first(model, batches):
    with torch.no_grad():
        for layer in model.model.encoder.layer:
            layer.output.dense.weight[:, :-8].mul_(1e-3)
    last = [layer.intermediate.dense.weight[-8:].clone() for layer in model.model.encoder.layer]
    arrange(model, batches, None, 8)
    for layer, weight in zip(model.model.encoder.layer, last, strict=True):
        assert {*layer.intermediate.dense.weight[:8].sum(1).tolist()} == {*weight.sum(1).tolist()}


def test_a_narrower_model_is_one_that_any_transformers_script_loads(model, sentences, tmp_path):
    smaller = narrowed(model, HEADS, FEATURES)
    assert widths(smaller) == (HEADS, FEATURES)
    assert widths(model) == (4, model.config.intermediate_size)
    smaller.model.save_pretrained(tmp_path)
    again = tf.BertModel.from_pretrained(tmp_path, add_pooling_layer=False)
    ours, theirs = smaller.model.state_dict(), again.state_dict()
    assert all(torch.equal(theirs[name], value) for name, value in ours.items())
    assert narrowed(model) is model


def test_an_arranged_teacher_leaves_a_nearer_student(model, batches, data, sentences):
    tokens, errors = tokenise(load(sentences), data.train, 64), []
    theirs = embeddings_of(model, tokens)
    for arranged in (False, True):
        if arranged:
            arrange(model, batches, HEADS, FEATURES)
        pupil = approximate(narrowed(copy.deepcopy(model), HEADS, FEATURES), in_training(Plan.preset("fast")))
        refit(model, pupil, batches)
        errors.append(float((embeddings_of(pupil, tokens) - theirs).square().mean()))
    assert errors[1] < errors[0]


def test_a_narrower_student_learns_and_costs_less(sentences, data, tmp_path):
    few = {**SHORT, "hidden_rate": 3e-3, "hidden_epochs": 6}
    narrow = distill(sentences, data, tmp_path / "a", embeddings=True, heads=HEADS, intermediate=FEATURES, **few)
    errors = [epoch["validation_embedding"] for epoch in narrow.report["history"]["hidden"]]
    assert min(errors) < 0.9 * errors[0]
    pupil, plan = load(narrow.folder), narrow.plan.replace(ranges={}, fits={})
    assert widths(pupil.model) == (HEADS, FEATURES)
    prices = [
        estimate(compile(loaded.model, loaded.examples(data.test.texts[:8], 16), plan))
        for loaded in (pupil, load(sentences))
    ]
    assert prices[0].offline_bytes < prices[1].offline_bytes


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"heads": 3}, r"heads 3: BertModel has 4, of which neighbours are joined; give a divisor, or leave"),
        ({"heads": 8}, r"heads 8: BertModel has 4, of which neighbours are joined; give a divisor"),
        ({"intermediate": 9999}, r"intermediate 9999: BertModel has \d+; give fewer, or leave intermediate out"),
    ],
)
def test_a_width_that_cannot_be_is_refused_before_anything_is_trained(sentences, data, tmp_path, widths, message):
    with pytest.raises(DistillError, match=message):
        distill(sentences, data, tmp_path / "a", embeddings=True, **widths, **SHORT)


def test_heads_of_a_size_of_their_own_and_fused_layers_are_refused():
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64}
    llama = tf.LlamaModel(tf.LlamaConfig(**sizes, num_attention_heads=4))
    with pytest.raises(DistillError, match="the heads of LlamaModel cannot be joined; leave heads out"):
        narrowed(llama, heads=2)
    fused = tf.ModernBertModel(tf.ModernBertConfig(**sizes, num_attention_heads=4, pad_token_id=0))
    with pytest.raises(DistillError, match=r"ModernBertModel: .*Wi.* is of another form; leave intermediate out"):
        narrowed(fused, intermediate=32)


def test_gated_features_are_kept_together():
    """Of a gated feed-forward two linear layers write the features that one reads."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    model = tf.LlamaModel(tf.LlamaConfig(**sizes, num_attention_heads=4)).eval()
    batch = {"input_ids": torch.arange(3, 12)[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    with torch.no_grad():
        before = model(**batch).last_hidden_state
        arrange(model, [batch], None, 32)
        torch.testing.assert_close(model(**batch).last_hidden_state, before, atol=1e-5, rtol=1e-5)
    for heads in (None, 4):  # its own
        assert narrowed(model, heads, 32).layers[0].mlp.gate_proj.out_features == 32
