"""A budget is spent on layers: as many as a query may have for it, and priced before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from blindformer.approximations import Plan, PlanError
from blindformer.models.compile import Compiled
from blindformer.models.distillation.budget import QueryBudget, layers_within, read_budget
from blindformer.models.distillation_settings import DistillError
from blindformer.models.judging.evaluation import compile_bucket
from blindformer.models.loading.load import load
from blindformer.models.program.pricing import price

LENGTH = 8


@pytest.mark.parametrize(
    ("text", "kind", "most"),
    [("0.2s", "seconds", 0.2), ("300ms", "seconds", 0.3), ("50MB", "bytes", 50e6), (" 1.5 GB", "bytes", 1.5e9)],
)
def test_a_budget_is_a_time_or_a_size(text, kind, most):
    budget = read_budget(text)
    assert (budget.kind, budget.text) == (kind, text)
    assert budget.most == pytest.approx(most)


@pytest.mark.parametrize("text", ["", "50", "MB", "0s", "-1s", "5 apples", "1e3MB", "50mb", "nan s"])
def test_what_is_neither_is_refused(text):
    with pytest.raises(DistillError, match=r"is no time or size; give one such as 0\.2s, 300ms or 50MB"):
        read_budget(text)


@pytest.fixture(scope="module")
def prices(encoder, few) -> dict[int, float]:
    """Bytes of a query, by layers of the student."""
    return within_bytes(encoder, few, 1e12).prices


def bytes_of(compiled: Compiled) -> dict[str, float]:
    priced = price(compiled.program)
    return {"bytes": float(priced.online_bytes + priced.offline_bytes), "seconds": 1.0}


def within_bytes(encoder, few, most: float):
    budget = QueryBudget("bytes", most, f"{most:g} bytes")
    return layers_within(budget, load(encoder), few, Plan.preset("fast"), LENGTH, bytes_of)


def test_the_most_layers_are_taken_that_cost_no_more(encoder, few, prices):
    one, two = prices[1], prices[2]
    assert one < two
    assert within_bytes(encoder, few, two).layers == 2
    least = within_bytes(encoder, few, two - 1)
    assert (least.layers, least.of, least.length) == (1, 2, LENGTH)
    assert str(least) == (
        f"1 of 2 layers: {one / 1e6:.1f} MB for a query of 8 tokens; with one more it would be {two / 1e6:.1f} MB"
    )


def test_narrower_layers_cost_less_so_a_budget_has_more_of_them(encoder, few, prices):
    budget = QueryBudget("bytes", prices[2] - 1, "less than two")
    given = (budget, load(encoder), few, Plan.preset("fast"), LENGTH, bytes_of)
    assert layers_within(*given).layers == 1
    assert layers_within(*given, widths=(1, 24)).layers == 2


def test_too_small_a_budget_says_what_one_layer_costs(encoder, few, prices):
    with pytest.raises(
        DistillError, match=rf"one layer and a query of 8 tokens take {prices[1] / 1e6:.1f} MB; raise it"
    ):
        within_bytes(encoder, few, prices[1] - 1)


def test_a_student_of_embeddings_has_no_head_to_pay_for(tiny_encoder, few):
    budget = QueryBudget("bytes", 1e12, "1 TB")
    loaded, plan = load(tiny_encoder), Plan.preset("fast")
    within = layers_within(budget, loaded, few, plan, LENGTH, bytes_of, embeddings=True)
    itself = compile_bucket(loaded, LENGTH, plan, few.train.texts)
    assert within.length == LENGTH
    assert within.prices == {1: pytest.approx(bytes_of(itself)["bytes"], rel=0.1)}


def test_a_plan_that_pools_is_priced_with_as_many_layers_as_that_takes(encoder, few):
    within = layers_within(
        QueryBudget("bytes", 1e12, "1 TB"), load(encoder), few, Plan.preset("fast").replace(pool=(1,)), LENGTH, bytes_of
    )
    assert (within.layers, set(within.prices)) == (2, {2})
    with pytest.raises(DistillError, match="2 layers, as the plan pools after 1, and a query of 8 tokens take"):
        layers_within(QueryBudget("bytes", 9.0, "9 bytes"), load(encoder), few, Plan(pool=(1,)), LENGTH, bytes_of)


def test_what_cannot_be_taught_or_pooled_is_refused_before_it_is_priced(encoder, few, monkeypatch):
    budget, loaded = QueryBudget("bytes", 1e12, "1 TB"), load(encoder)
    with pytest.raises(PlanError, match="pools tokens after 9 layers, and BertModel has 2"):
        layers_within(budget, loaded, few, Plan(pool=(9,)), LENGTH, bytes_of)
    monkeypatch.setattr(type(loaded), "plan", lambda self: Plan.preset("fast"))
    with pytest.raises(DistillError, match=r"was trained for plan fast; give its teacher"):
        layers_within(budget, loaded, few, Plan.preset("fast"), LENGTH, bytes_of)
    monkeypatch.undo()
    with pytest.raises(DistillError, match=r"is no folder with a config\.json; give another teacher"):
        layers_within(budget, replace(loaded, folder=Path("weights.gguf")), few, Plan.preset("fast"), LENGTH, bytes_of)
