"""The search: every change measured alone, the cheapest mix within the budget, and a frontier that is honest."""

from dataclasses import replace

import pytest
import torch
from blindformer.approximations import Plan, calibrate
from blindformer.approximations.plan import kind_of
from blindformer.models.data import Examples
from blindformer.models.judging.search import Change, SearchError, layer_paths, search, with_changes
from blindformer.models.loading.load import load
from blindformer.models.program.pricing import price as bytes_of
from blindformer.tests.shared.tiny import save_tokenizer, tiny_config
from transformers import BertForSequenceClassification

WORDS = ["the", "a", "is", "it", "not", "what", "good", "bad", "my", "password", "lost", "found", "red", "blue"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Two layers, the second with a large GELU's input, where quad is far off."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("searched")
    model = BertForSequenceClassification(tiny_config(num_labels=2, num_hidden_layers=2, initializer_range=0.15))
    with torch.no_grad():
        model.bert.encoder.layer[1].intermediate.dense.weight.mul_(25)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return load(folder)


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(0)
    draws = [torch.randint(0, len(WORDS), (int(n),), generator=generator) for n in torch.randint(2, 7, (24,))]
    sentences = [" ".join(WORDS[i] for i in draw) for draw in draws]
    return Examples(sentences, [i % 2 for i in range(24)])


def cost(compiled):
    size = bytes_of(compiled.program)
    return {"seconds": size.online_bytes / 1e6, "online_bytes": size.online_bytes}


@pytest.fixture(scope="module")
def result(classifier, texts):
    return search(classifier, texts, texts.texts, cost, metric="agreement", budget=5.0, length=8)


def test_every_layer_and_choice_is_measured_alone(result):
    tried = {(s.change.layer[-3:], s.change.kind, s.change.label) for s in result.sensitivities}
    kinds = {(kind, label) for _, kind, label in tried}
    assert ("linear", "8 bits") in kinds
    assert ("softmax", "2quad") in kinds
    assert ("gelu", "quad") in kinds
    assert not any(kind == "silu" for kind, _ in kinds)  # the model has none
    assert len(tried) == 2 * len(kinds) == len(result.sensitivities)
    divergences = [s.quality.divergence for s in result.sensitivities]
    assert divergences == sorted(divergences)
    assert min(divergences) > -1e-12


def test_a_pooling_is_priced_where_it_is(result):
    """It saves more the earlier it is, and in so small a model perhaps nothing; only training makes it good."""
    pools = {s.change.number: s for s in result.sensitivities if s.change.kind == "pool"}
    assert set(pools) == {0, 1}
    assert pools[0].saving > pools[1].saving
    assert all(s.change.needs_distillation for s in pools.values())
    assert result.points[-1].plan.pool == tuple(number for number in (0, 1) if pools[number].saving > 0)
    plan = with_changes(Plan.preset("faithful"), [pools[1].change])
    assert (plan.pool, plan.overrides) == ((1,), {})


def test_a_sensitive_layer_is_told_from_one_that_is_not(result):
    quad = {s.change.layer: s.quality.divergence for s in result.sensitivities if s.change.label == "quad"}
    assert quad["bert.encoder.layer.1.*"] > 5 * quad["bert.encoder.layer.0.*"]


def test_the_chosen_plan_is_the_cheapest_within_the_budget(result):
    assert result.points[0].taken == 0
    assert all(p.loss <= result.budget for p in result.points if p.within)
    assert result.chosen.within
    assert result.chosen.seconds <= min(p.seconds for p in result.points if p.within)
    assert result.chosen.price["seconds"] < result.points[0].price["seconds"]
    assert result.chosen.plan.ranges == {}
    assert Plan.from_json(result.chosen.plan.to_json()) == result.chosen.plan


def test_a_larger_budget_is_never_dearer(result, classifier, texts):
    options = {"metric": "agreement", "length": 8, "choices": {"linear": (8,)}}
    nothing, all_of_it = (
        search(classifier, texts, texts.texts, cost, budget=budget, **options) for budget in (0.0, 100.0)
    )
    assert all_of_it.chosen.price["seconds"] <= nothing.chosen.price["seconds"]
    assert all_of_it.chosen.taken == 2
    assert nothing.chosen.loss == 0.0


def test_changes_are_exceptions_of_the_plan():
    base = Plan.preset("faithful").replace(overrides={"x.0.*": {"gelu": "bolt"}}, bits={"*": 12})
    changed = with_changes(base, [Change("x.0.*", "softmax", "2quad"), Change("x.1.*", "linear", 8)])
    assert changed.choice("softmax", "x.0.attention").name == "2quad"
    assert changed.choice("gelu", "x.0.act").name == "bolt"
    assert (changed.bits_of("x.1.dense"), changed.bits_of("x.0.dense")) == (8, 12)
    assert with_changes(changed, [Change("x.2.*", "linear", 8)]).name == "faithful, searched"


def test_a_model_without_layers_and_an_unknown_metric(classifier, texts):
    with pytest.raises(SearchError, match="no list of layers"):
        list(layer_paths(torch.nn.Linear(2, 2)))
    with pytest.raises(SearchError, match="choose accuracy or agreement"):
        search(classifier, texts, texts.texts, cost, metric="beauty")


@pytest.fixture(scope="module")
def student(classifier, texts):
    """A copy of the classifier, as one that was trained with a plan of its own: its fits are none that calibration
    would make."""
    fitting = [classifier.encode(text, 8, truncate=True) for text in texts.texts]
    fitted = calibrate(classifier.model, fitting, "he")
    site = "bert.encoder.layer.1.output.LayerNorm/layer_norm"
    fit = fitted.fits[site]["inverse_deviation"]
    own = fitted.replace(fits={**fitted.fits, site: {"inverse_deviation": fit + 0.5}})
    copy = replace(classifier)
    copy.plan = lambda: own  # type: ignore[method-assign]
    return copy, own, site


def test_a_student_starts_from_its_own_plan_and_is_compared_with_it(student, texts):
    loaded, own, site = student
    result = search(loaded, texts, texts.texts, cost, metric="agreement", length=8, choices={"linear": (8,)})
    assert result.reference == "plan he"
    start = result.points[0]
    assert start.plan.same_functions(own)
    assert start.plan.fits[site] == own.fits[site]
    assert (start.loss, round(start.quality.divergence, 6)) == (0.0, 0.0)
    assert start.quality.accuracy == result.exact.accuracy


def test_a_layer_that_gets_another_choice_loses_the_fit_that_it_was_trained_with(student):
    _, own, site = student
    path, kind = site.split("/")[0], kind_of(site)
    kept, lost = with_changes(own, [Change(path, "linear", 9)]), with_changes(own, [Change(path, kind, "exact")])
    assert kept.fits == own.trained_fits()
    assert set(own.trained_fits()) - set(lost.fits) == {site}
