"""Plans: choices by glob, JSON, and one clear line for everything that does not exist."""

import json

import pytest
from blindformer.approximations import Choice, Plan, PlanError, approximation, find
from blindformer.approximations.plan import PRESETS
from hypothesis import given
from hypothesis import strategies as st


def test_round_trip(tmp_path):
    plan = Plan(
        name="mine",
        gelu=Choice(name="fourier", options={"terms": 5}),
        softmax="2quad",
        linear_bits=8,
        overrides={"encoder.layer.0.*": {"gelu": "exact"}},
        ranges={"a/gelu": (-1.0, 2.0)},
        fits={"a/gelu": {"cut": 3.0, "period": 8.0, "terms": [1.0, 2.0]}, "a/softmax/denominator": {"exponent": 3.0}},
    )
    file = plan.save(tmp_path)
    assert file.name == "plan.json"
    again = Plan.load(tmp_path)
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.content_hash() == plan.content_hash() == Plan.load(file).content_hash()
    assert plan.replace(linear_bits=9).content_hash() != plan.content_hash()
    assert plan.replace(fraction=12).content_hash() != plan.content_hash() == plan.replace(fraction=16).content_hash()


@given(st.dictionaries(st.text(max_size=8), st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), max_size=4))
def test_ranges_survive_json(ranges):
    plan = Plan(ranges=ranges)
    assert Plan.from_json(plan.to_json()) == plan


def test_last_matching_glob_wins():
    plan = Plan(
        gelu="quad",
        overrides={"encoder.*": {"gelu": "bolt", "softmax": "2relu"}, "encoder.layer.1.*": {"gelu": "exact"}},
    )
    assert plan.choice("gelu", "decoder.act").name == "quad"
    assert plan.choice("gelu", "encoder.layer.0.act").name == "bolt"
    assert plan.choice("gelu", "encoder.layer.1.act").name == "exact"
    assert plan.choice("softmax", "encoder.layer.1.attention").name == "2relu"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Plan(gellu="quad"), ["unknown key 'gellu'", "gelu"]),
        (lambda: Plan(gelu={"name": "quad", "optoins": {}}), ["gelu.optoins", "options"]),
        (lambda: Plan(gelu="nope"), ["'nope'", "fourier", "quad"]),
        (lambda: Plan(gelu=Choice(name="fourier", options={"term": 3})), ["'term'", "terms"]),
        (lambda: Plan(overrides={"*": {"gelu": "nope"}}), ["'nope'", "fourier"]),
        (lambda: Plan(overrides={"*": {"nope": "quad"}}), ["unknown kind 'nope'", "softmax"]),
        (lambda: Plan(fraction=30), ["fraction", "18"]),
        (lambda: Plan.preset("quick"), ["'quick'", "faithful", "fast"]),
        (lambda: find("gelu", "nope"), ["'nope'", "nexus"]),
        (lambda: Plan.from_json("{"), ["plan.json", "JSON"]),
        (lambda: Plan.from_json('{"gelu": "nope"}', "here.json"), ["here.json", "'nope'"]),
        (lambda: Plan.load("/nowhere/plan.json"), ["/nowhere/plan.json"]),
        (lambda: approximation("gelu", "quad")(print), ["twice"]),
    ],
)
def test_errors_are_one_line_and_name_what_exists(make, words):
    with pytest.raises(PlanError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_presets():
    presets = {name: Plan.preset(name) for name in PRESETS}
    needy = {name for name, plan in presets.items() if plan.needs_distillation()}
    assert needy == {"fast", "he"}
    assert (presets["fast"].linear_bits, presets["fast"].fraction, presets["faithful"].fraction) == (8, 13, 16)
    assert Plan(overrides={"*": {"gelu": "quad"}}).needs_distillation()
    chosen = [find(kind, choice.name) for kind, choice in presets["he"].chosen()]
    assert all(a.function is not None and a.comparisons == 0 for a in chosen)  # polynomials only
    assert {choice.name for _, choice in presets["exact"].chosen()} == {"exact"}
    assert presets["faithful"].same_functions(Plan())


def test_a_plan_for_a_slow_network_takes_fewer_rounds_and_keeps_what_was_trained():
    plan = Plan(fits={"b/gelu": {"cut": 1.0}})
    assert plan.for_network(0.0005, 1e9) is plan
    slow = plan.for_network(0.04, 1e8)
    assert slow.a_round == 8 * plan.a_round
    assert slow.fits == plan.fits
    assert Plan.from_json(slow.to_json()) == slow
    assert Plan.preset("fast").for_network(0.04, 1e8).softmax == Plan.preset("fast").softmax


def test_a_plan_is_json_a_person_can_write():
    assert Plan.from_json(json.dumps({"gelu": "bolt", "margin": 3})).margin == 3.0
