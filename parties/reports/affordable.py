"""How many layers a student may have for what a private query of it may cost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from ...approximations import Plan
from ...models.compile import Compiled
from ...models.data import Dataset, load_data
from ...models.distillation.budget import Affordable, layers_within, read_budget
from ...models.distillation.pipeline import pooling
from ...models.distillation_settings import EMBEDDINGS, DistillSettings
from ...models.loading.load import Loaded, load
from .estimate import estimate


def affordable_layers(
    budget: str,
    teacher: str | Path | Loaded,
    data: str | Path | Dataset,
    plan: Plan | str = "fast",
    *,
    embeddings: bool = False,
    length: int | None = None,
    pool: tuple[int, ...] | None = None,
    heads: int | None = None,
    intermediate: int | None = None,
    progress: Callable[[str], None] = lambda model: None,
) -> Affordable:
    """Return the largest number of layers whose query costs no more than a budget. Nothing is trained.

        affordable = bf.affordable_layers("50MB", "minilm", "uci")
        student = bf.distill("minilm", "uci", "student", layers=affordable.layers)

    budget    seconds on a LAN ("0.2s", "300ms") or bytes ("50MB"), offline and online together
    length    tokens of a query (default: as `distill` cuts)
    pool      layers after which tokens are pooled (default: the plan's)
    progress  called with the name of each model that is priced

    The other arguments are those of `distill`.

    Raises BlindformerError; DistillError if one layer exceeds the budget.
    """
    limit, plan = read_budget(budget), Plan.preset(plan) if isinstance(plan, str) else plan
    plan = pooling(plan, plan.pool if pool is None else pool)
    dataset = data if isinstance(data, Dataset) else load_data(data)
    loaded = teacher if isinstance(teacher, Loaded) else load(teacher)

    def price(compiled: Compiled) -> dict[str, float]:
        progress(compiled.program.model)
        one = estimate(compiled)
        return {"seconds": one.online_s + one.offline_s, "bytes": float(one.online_bytes + one.offline_bytes)}

    usual = DistillSettings(**(EMBEDDINGS if embeddings else {})).length
    tokens = min(usual if length is None else length, loaded.positions or sys.maxsize)
    return layers_within(limit, loaded, dataset, plan, tokens, price, embeddings, (heads, intermediate))
