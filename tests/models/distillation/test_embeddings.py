"""A student of embeddings: refitted layers, then its teacher's states; no labels are looked at."""

from __future__ import annotations

import copy
import shutil

import pytest
import torch
import transformers as tf
from blindformer.approximations import Choice, Plan, approximate, plan_of
from blindformer.approximations.calibrate import in_force
from blindformer.approximations.linear_attention import scores_of_few
from blindformer.models.compile import compile
from blindformer.models.distillation import DistillError, distill
from blindformer.models.distillation.batches import in_order, passages, tokenise
from blindformer.models.distillation.refit import concentrate, refit
from blindformer.models.distillation.student import in_training
from blindformer.models.distillation.teacher import cosines, embeddings_of, spearman
from blindformer.models.loading.layers import layer_count, with_layers
from blindformer.models.loading.load import load

from ..conftest import clear

SHORT = {"batch": 16, "hidden_rate": 1e-3, "hidden_epochs": 2}


@pytest.fixture(scope="module")
def sentences(encoder, tmp_path_factory):
    """The encoder's folder with mean pooling."""
    folder = shutil.copytree(encoder, tmp_path_factory.mktemp("sentences") / "encoder")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


@pytest.fixture(scope="module")
def student(sentences, data, tmp_path_factory):
    return distill(sentences, data, tmp_path_factory.mktemp("student") / "out", embeddings=True, **SHORT)


def test_refitted_layers_are_nearer_to_their_teachers(sentences, data):
    loaded = load(sentences)
    tokens = tokenise(loaded, data.train, 64)
    batches = [tokens.batch(indices) for indices in in_order(tokens.lengths, 32)]
    untouched = approximate(copy.deepcopy(loaded.model), in_training(Plan.preset("fast")))
    pupil = copy.deepcopy(untouched)
    errors = refit(loaded.model, pupil, batches)
    assert len(errors) == 6 * 2
    assert all(after <= before for before, after in errors.values())
    theirs, before, after = (embeddings_of(model, tokens) for model in (loaded.model, untouched, pupil))
    assert (after - theirs).square().mean() < 0.5 * (before - theirs).square().mean()


def test_the_student_finds_alike_what_its_teacher_does(student, sentences, data):
    teacher, pupil = load(sentences), load(student.folder)
    assert pupil.kind == "sentence"
    assert student.report["validation_spearman"]["teacher"] == pytest.approx(1.0)
    tokens, plan = tokenise(teacher, data.test, 64), pupil.plan()
    with in_force(teacher.model, plan.replace(ranges={}, fits={})):
        untouched = embeddings_of(teacher.model, tokens)
    with in_force(pupil.model, plan):
        ours = embeddings_of(pupil.model, tokens)
    theirs = embeddings_of(teacher.model, tokens)
    assert cosines(ours, theirs).mean() > cosines(untouched, theirs).mean()
    half = len(tokens) // 2
    pairs = [cosines(embedded[:half], embedded[half : 2 * half]) for embedded in (theirs, ours, untouched)]
    assert spearman(pairs[0], pairs[1]) > max(0.8, spearman(pairs[0], pairs[2]))


@pytest.fixture(scope="module")
def pooled(student, sentences, data, tmp_path_factory):
    """Of two layers, the second on half of the tokens; it goes on from the student of all tokens."""
    out = tmp_path_factory.mktemp("pooled") / "out"
    return distill(sentences, data, out, embeddings=True, pool="1", start=student.folder, **SHORT)


def test_a_student_on_fewer_tokens_learns_too(pooled, student, sentences, data):
    assert (pooled.plan.pool, pooled.report["start"]) == ((1,), student.folder.name)
    assert load(pooled.folder).plan() == pooled.plan
    teacher, tokens = load(sentences), tokenise(load(sentences), data.train, 64)
    theirs, errors = embeddings_of(teacher.model, tokens), []
    for folder, plan in ((pooled.folder, pooled.plan), (student.folder, pooled.plan.replace(ranges={}, fits={}))):
        loaded = load(folder)
        with in_force(loaded.model, plan):
            errors.append(float((embeddings_of(loaded.model, tokens) - theirs).square().mean()))
    trained, untrained = errors
    assert trained < 0.9 * untrained


def test_layers_on_fewer_tokens_are_refitted_to_means(sentences, data):
    loaded = load(sentences)
    tokens = tokenise(loaded, data.train, 64)
    batches = [tokens.batch(indices) for indices in in_order(tokens.lengths, 32)]
    plan = in_training(Plan.preset("fast").replace(pool=(0, 1)))
    errors = refit(loaded.model, approximate(copy.deepcopy(loaded.model), plan), batches)
    assert all(after <= before for before, after in errors.values())


def test_a_student_of_fewer_layers_is_refitted_to_those_that_it_keeps(sentences, data, tmp_path):
    loaded = load(sentences)
    tokens = tokenise(loaded, data.train, 64)
    batches = [tokens.batch(indices) for indices in in_order(tokens.lengths, 32)]
    errors = refit(
        loaded.model, approximate(with_layers(loaded.model, [1]), in_training(Plan.preset("fast"))), batches, [1]
    )
    assert len([name for name in errors if ".layer.0." in name]) == len(errors) == 6
    shorter = distill(sentences, data, tmp_path / "out", embeddings=True, layers=1, **SHORT)
    pupil = load(shorter.folder)
    assert (shorter.report["kept_layers"], layer_count(pupil.model)) == ([1], 1)
    assert shorter.report["validation_spearman"]["student"] > 0.3
    batch = tokens.batch([0])
    compiled = compile(pupil.model, [batch], pupil.plan())
    with in_force(pupil.model, pupil.plan()), torch.no_grad():
        expected = pupil.model(**batch).sentence_embedding
    assert (clear(compiled, batch)["sentence_embedding"] - expected).abs().max() < 2**-8


def test_few_features_hold_most_of_the_scores_after_they_were_turned(sentences, data):
    """Of the model's own functions nothing changes, and linear attention is nearer to them than before."""
    loaded = load(sentences)
    tokens = tokenise(loaded, data.train, 64)
    batches = [tokens.batch(indices) for indices in in_order(tokens.lengths, 32)]
    model, linear = copy.deepcopy(loaded.model), Plan(softmax=Choice(name="linear", options={"rank": 4}))
    mixed = {"exact": [], "few": []}
    for turned in (False, True):
        if turned:
            concentrate(model, batches, Plan.preset("exact"), linear)
        mixed["exact"].append(embeddings_of(model, tokens))
        with in_force(model, Plan.preset("exact").replace(softmax=linear.softmax)):
            mixed["few"].append(_scores(model, batches[0]))
    assert (mixed["exact"][0] - mixed["exact"][1]).abs().max() < 1e-4
    whole, (before, after) = _scores(model, batches[0]), mixed["few"]
    assert (after - whole).square().mean() < 0.7 * (before - whole).square().mean()


def test_a_model_that_turns_queries_by_position_is_left_as_it_is():
    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    model = tf.Qwen2Model(tf.Qwen2Config(**sizes, num_hidden_layers=1, num_key_value_heads=4)).eval()
    batch = {"input_ids": torch.arange(3, 12)[None], "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    before = copy.deepcopy(model.state_dict())
    concentrate(model, [batch], Plan.preset("exact"), Plan(softmax="linear"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def _scores(model, batch):
    """Of the first layer's queries and keys: all features, or those that are read, as the plan in force says."""
    plan, seen = plan_of(model), {}
    hooks = [
        module.register_forward_hook(lambda _, args, out, name=name: seen.setdefault(name, out))
        for name, module in model.named_modules()
        if name.endswith(("0.attention.self.query", "0.attention.self.key"))
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    heads = model.config.num_attention_heads
    key, query = (seen[name].unflatten(-1, (heads, -1)).transpose(1, 2) for name in sorted(seen))
    scores = scores_of_few(query, key, query.shape[-1] if plan is None else plan.softmax.options["rank"])
    return scores - scores.mean(-1, keepdim=True)  # softmax does not see the mean


def test_only_a_student_of_the_same_shape_is_gone_on_from(student, sentences, tiny_encoder, data, tmp_path):
    with pytest.raises(DistillError, match="has not the student's shape, first model"):
        distill(sentences, data, tmp_path / "a", embeddings=True, start=tiny_encoder, **SHORT)


def test_parties_compute_what_torch_does(student, data):
    loaded, plan = load(student.folder), student.plan
    batches = loaded.examples(data.test.texts[:8], 16)
    compiled = compile(loaded.model, batches, plan)
    with in_force(loaded.model, plan), torch.no_grad():
        expected = loaded.model(**batches[0]).sentence_embedding
    torch.testing.assert_close(clear(compiled, batches[0])["sentence_embedding"], expected, atol=0.02, rtol=0.02)


def test_a_student_is_no_teacher(student, data, tmp_path):
    with pytest.raises(DistillError, match="was trained for plan fast; give its teacher"):
        distill(student.folder, data, tmp_path / "a", embeddings=True)
    assert not (tmp_path / "a").exists()


def test_passages_are_of_the_texts_and_repeat_with_the_seed():
    drawn = passages(["a b", "c"], 5, seed=1)
    assert drawn == passages(["a b", "c"], 5, seed=1)
    assert {word for text in drawn for word in text.split()} <= {"a", "b", "c"}
    assert all(len(text.split()) >= 2 for text in drawn)
