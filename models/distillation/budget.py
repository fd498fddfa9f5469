"""How many layers a student may have for a price of one private query: found before anything is trained.

A query's price grows with each layer, and a student's accuracy with it: so a budget is spent on layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from ...approximations import Plan
from ...approximations.pooling import check_pooling
from ..compile import Compiled
from ..data import Dataset
from ..distillation_settings import DistillError
from ..judging.evaluation import compile_bucket
from ..loading.layers import layer_count, narrowed, spread, with_layers
from ..loading.load import Loaded
from .teacher import check_teaches, classifier_of, is_classifier

_FITTED = 64  # texts
_UNITS = {
    "ms": ("seconds", 1e-3),
    "s": ("seconds", 1.0),
    "kB": ("bytes", 1e3),
    "MB": ("bytes", 1e6),
    "GB": ("bytes", 1e9),
}
_FORM = re.compile(rf"(\d+(?:\.\d+)?) ?({'|'.join(_UNITS)})")

Pricer = Callable[[Compiled], Mapping[str, float]]


@dataclass(frozen=True)
class QueryBudget:
    """`kind`: "seconds", or "bytes", of a query, online and offline together. `text`: as it was given."""

    kind: str
    most: float
    text: str

    def words(self, amount: float) -> str:
        """An amount of this kind, for people."""
        return f"{amount:.2f} s" if self.kind == "seconds" else f"{amount / 1e6:.1f} MB"


def read_budget(text: str) -> QueryBudget:
    """Errors: DistillError."""
    match = _FORM.fullmatch(text.strip())
    if match is None or not float(match[1]):
        raise DistillError(f"budget {text!r}: is no time or size; give one such as 0.2s, 300ms or 50MB")
    kind, unit = _UNITS[match[2]]
    return QueryBudget(kind, float(match[1]) * unit, text)


@dataclass(frozen=True)
class Affordable:
    """How many layers a budget allows. `prices`: by number of layers, of those that were priced."""

    budget: QueryBudget
    layers: int
    of: int
    length: int
    prices: dict[int, float]

    def __str__(self) -> str:
        price = self.budget.words(self.prices[self.layers])
        kept = f"{self.layers} of {self.of} layers: {price} for a query of {self.length} tokens"
        if (more := self.prices.get(self.layers + 1)) is not None:
            kept += f"; with one more it would be {self.budget.words(more)}"
        return kept


def layers_within(
    budget: QueryBudget,
    loaded: Loaded,
    data: Dataset,
    plan: Plan,
    length: int,
    price: Pricer,
    embeddings: bool = False,
    widths: tuple[int | None, int | None] = (None, None),
) -> Affordable:
    """The most layers of a teacher with which a query of `length` tokens costs no more than the budget.

    loaded  a classifier, or an encoder, which gets a head for the labels of `data`
    data    on some of whose texts the ranges of what is priced are fitted; a price depends on them by a few bits
    price   a compiled program -> "seconds" and "bytes" of a query
    embeddings  of a student of an encoder's embeddings, which gets no head
    widths  heads, and features of the feed-forward, of the student; None: its teacher's

    Errors: DistillError if one layer costs more, the model is a student, or has no list of layers; PlanError for a
    pooling that it has no layers for; those of compiling.
    """
    check_teaches(loaded)
    check_pooling(loaded.model, plan.pool, plan.name)
    given = embeddings or is_classifier(loaded)
    teacher = loaded.model if given else classifier_of(loaded, data.labels, 0)
    loaded = loaded if given else replace(loaded, kind="classifier")
    of, texts = layer_count(teacher), data.train.subset(_FITTED, 0).texts
    prices: dict[int, float] = {}

    @cache
    def priced(layers: int) -> float:
        smaller = replace(loaded, model=narrowed(with_layers(teacher, spread(layers, of)), *widths))
        prices[layers] = price(compile_bucket(smaller, length, plan, texts))[budget.kind]
        return prices[layers]

    least, most = max(plan.pool, default=0) + 1, of
    if priced(least) > budget.most:
        layers = "one layer" if least == 1 else f"{least} layers, as the plan pools after {least - 1},"
        what = f"{layers} and a query of {length} tokens take {budget.words(priced(least))}"
        raise DistillError(f"budget {budget.text}: {what}; raise it, or lower --length")
    while least < most:
        middle = (least + most + 1) // 2
        if priced(middle) <= budget.most:
            least = middle
        else:
            most = middle - 1
    return Affordable(budget, least, of, length, dict(sorted(prices.items())))
