"""The cheapest plan within a loss of accuracy: which layer may use what, found by trying one change at a time.

1. Sensitivity. Each change (one layer, one kind of function, one cheaper choice) is put into the base plan alone, and
   the answers on validation texts are compared with those of float32, or, of a student, with those of the plan that it
   was trained with: the mean Kullback-Leibler divergence of the classes' probabilities, which sees a loss long before
   an answer flips.
2. Saving. A program is compiled with each choice in all layers, and priced; a layer has its share of the difference.
3. Search. Changes are taken in the order of divergence per second saved. One that takes the loss over the budget is
   left out again. Every state on the way is a point of the frontier.

Nothing is trained here. Choices that need distillation break an untouched model, and the search says by how much;
that ranks layers by what they bear, and a plan with such choices is what `distill` is then given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...approximations import Plan, PlanError, calibrate, kinds, plan_of, restore
from ...approximations.calibrate import in_force
from ...approximations.plan import kind_of
from ...approximations.pooling import layer_count, layers_path
from ...approximations.registry import EXACT, find
from ...protocols.errors import BlindformerError
from ..compile import Compiled
from ..data import Examples
from ..loading.load import Loaded
from .evaluation import Interval, check_classifier, compile_bucket, encode, wilson

POOL = "pool"
CHOICES: dict[str, tuple[Any, ...]] = {
    **{kind.name: tuple(kind.search) for kind in kinds().values() if kind.search},
    "linear": (8,),
    POOL: ("half of the tokens",),
}
"""What a layer may be given instead of the base plan's own choice. `linear`: bits of the weights; `pool`: it, and those
behind it, compute on half of the tokens."""

METRICS = ("accuracy", "agreement")
CALIBRATION = 64
ROWS = 32
Progress = Callable[[str, int, int], None]
Pricer = Callable[[Compiled], dict[str, float]]


class SearchError(BlindformerError):
    """A model that cannot be searched."""


@dataclass(frozen=True)
class Change:
    """One choice in one layer. `layer`: a glob on module paths."""

    layer: str
    kind: str
    choice: Any

    @property
    def number(self) -> int:
        """The layer's own (0: the first)."""
        return int(self.layer.removesuffix(".*").rpartition(".")[2])

    @property
    def label(self) -> str:
        if isinstance(self.choice, int):
            return f"{self.choice} bits"
        if isinstance(self.choice, str):
            return self.choice
        options = ", ".join(f"{k} {v:g}" for k, v in self.choice["options"].items())
        return f"{self.choice['name']} ({options})"

    @property
    def needs_distillation(self) -> bool:
        if self.kind in ("linear", POOL):
            return self.kind == POOL
        return find(self.kind, self.choice["name"] if isinstance(self.choice, dict) else self.choice).needs_distillation


@dataclass(frozen=True)
class Quality:
    """Answers on the validation texts. `divergence`: mean KL from the reference's, in nats; `agreement`: with it."""

    divergence: float
    accuracy: Interval
    agreement: Interval

    def loss(self, exact: Quality, metric: str) -> float:
        """Points lost against the reference."""
        if metric == "accuracy":
            return 100 * (exact.accuracy.value - self.accuracy.value)
        return 100 * (1.0 - self.agreement.value)


@dataclass(frozen=True)
class Sensitivity:
    """A change alone. `saving`: seconds of a query that it is expected to save."""

    change: Change
    quality: Quality
    saving: float


@dataclass(frozen=True)
class Point:
    """A plan on the way. `taken`: how many changes are in it; `seconds` is expected, but for the ends: see `price`."""

    plan: Plan
    taken: int
    quality: Quality
    loss: float
    seconds: float
    within: bool
    price: dict[str, float] | None = None


@dataclass(frozen=True)
class Found:
    """The result. `points`: from the base plan to the one with every change; `chosen`: the cheapest one within.

    reference  what all are compared with, in torch: float32; or the plan that the model was trained with, by its name
    exact      the reference's own quality
    """

    model: str
    reference: str
    metric: str
    budget: float
    texts: int
    length: int
    exact: Quality
    sensitivities: list[Sensitivity]
    points: list[Point]
    chosen: Point

    def to_dict(self) -> dict[str, Any]:
        document = {name: _plain(value) for name, value in vars(self).items() if name not in ("points", "chosen")}
        document["points"] = [_point(p) for p in self.points]
        return {**document, "chosen": {**_point(self.chosen), "plan": self.chosen.plan.model_dump(mode="json")}}


def search(
    loaded: Loaded,
    validation: Examples,
    calibration: Sequence[str],
    price: Pricer,
    *,
    base: Plan | str | None = None,
    budget: float = 1.0,
    metric: str = "accuracy",
    length: int = 32,
    choices: Mapping[str, Sequence[Any]] = CHOICES,
    progress: Progress | None = None,
) -> Found:
    """Search the mixed plans between `base` and every cheaper choice in every layer.

    All are compared with the model in float32, in torch; one that was trained with the plan in its folder, with that,
    because its weights mean nothing with exact functions.

    base         a preset's name or a plan (default: the one in the model's folder, else `faithful`)
    validation   labelled texts that a plan is judged on (class indices of the model); not the test set
    calibration  texts: every plan is calibrated on the first 64
    price        a compiled program -> at least "seconds" of a query
    budget       points of `metric` that may be lost: accuracy on the labels, or agreement with the reference
    length       tokens of a query; texts are padded to it or cut

    Errors: SearchError for a model without a list of layers, or an unknown metric; those of calibrating and compiling.
    """
    if metric not in METRICS:
        raise SearchError(f"metric {metric}: choose {' or '.join(METRICS)}")
    check_classifier(loaded)
    base = base or loaded.plan() or "faithful"
    base = Plan.preset(base) if isinstance(base, str) else base
    judge = _Judge(loaded, validation, calibration, length, base)
    say = progress or (lambda what, done, total: None)
    layers = list(layer_paths(loaded.model))
    changes = [
        Change(f"{layer}.*", kind, choice)
        for kind, options in choices.items()
        for choice in options
        if _differs(base, kind, choice, f"{layers[0]}.x") and judge.reaches(kind)
        for layer in layers
    ]
    start = price(judge.compiled(base))
    together: dict[tuple[str, str], list[Change]] = {}
    for change in changes:  # a pooling saves more the earlier it is: each is priced alone
        together.setdefault((change.kind, change.layer if change.kind == POOL else change.label), []).append(change)
    priced: list[tuple[Change, float]] = []
    for done, group in enumerate(together.values(), start=1):
        try:
            saved = start["seconds"] - price(judge.compiled(with_changes(base, group)))["seconds"]
        except PlanError:  # a model that computes scores by itself has no linear attention
            continue
        priced += [(change, saved / len(group)) for change in group]
        say("price", done, len(together))
    sensitivities = []
    for done, (change, saving) in enumerate(priced, start=1):
        sensitivities.append(Sensitivity(change, judge.quality(with_changes(base, [change])), saving))
        say("sensitivity", done, len(changes))
    points = _walk(judge, base, start["seconds"], sensitivities, budget, metric, say)
    ends = {id(points[0]): start, id(points[-1]): price(judge.compiled(points[-1].plan))}
    # What changes save was found alone, and is not quite what they save together: price until no other plan may be
    # cheaper.
    cheapest = points[0]
    for point in sorted((p for p in points if p.within), key=lambda p: p.seconds):
        if point.seconds >= ends[id(cheapest)]["seconds"]:
            break
        if id(point) not in ends:
            ends[id(point)] = price(judge.compiled(point.plan))
        cheapest = min(cheapest, point, key=lambda p: ends[id(p)]["seconds"])
    on_the_way = [replace(p, seconds=ends[id(p)]["seconds"], price=ends[id(p)]) if id(p) in ends else p for p in points]
    return Found(
        model=loaded.name,
        reference="float32" if judge.trained is None else f"plan {judge.trained.name}",
        metric=metric,
        budget=budget,
        texts=len(validation),
        length=length,
        exact=judge.exact,
        sensitivities=sorted(sensitivities, key=lambda s: s.quality.divergence),
        points=on_the_way,
        chosen=on_the_way[points.index(cheapest)],
    )


def with_changes(plan: Plan, changes: Sequence[Change]) -> Plan:
    """The plan with these changes as exceptions, to be calibrated. Trained fits stay where the choice does."""
    overrides = {pattern: dict(by_kind) for pattern, by_kind in plan.overrides.items()}
    bits, pool = dict(plan.bits), list(plan.pool)
    for change in changes:
        if change.kind == POOL:
            pool.append(change.number)
        elif change.kind == "linear":
            bits[change.layer] = change.choice
        else:
            overrides.setdefault(change.layer, {})[change.kind] = change.choice
    name = plan.name if not changes else f"{plan.name}, searched".replace(", searched, searched", ", searched")
    changed = plan.replace(name=name, overrides=overrides, bits=bits, pool=tuple(sorted(pool)), ranges={}, fits={})
    kept = {site: fit for site, fit in plan.trained_fits().items() if _alike(plan, changed, site)}
    return changed.replace(fits=kept)


def _alike(plan: Plan, other: Plan, site: str) -> bool:
    where = (kind_of(site), site.partition("/")[0])
    return plan.choice(*where) == other.choice(*where)


def layer_paths(model: nn.Module) -> Iterator[str]:
    """Paths of the layers: the members of the longest list of modules of one class."""
    lists = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and len({type(m) for m in module}) == 1
    ]
    if not lists:
        raise SearchError(f"{type(model).__name__}: has no list of layers, so there is nothing to mix; choose a preset")
    path, module = max(lists, key=lambda item: len(item[1]))
    return (f"{path}.{i}" for i in range(len(module)))


class _Judge:
    """The model, the texts in batches of one length, and the reference's answers. `trained`: the reference's plan."""

    def __init__(
        self, loaded: Loaded, validation: Examples, calibration: Sequence[str], length: int, base: Plan
    ) -> None:
        self.loaded, self.length, self.calibration = loaded, length, list(calibration)[:CALIBRATION]
        self.labels = torch.tensor(validation.labels)
        self.batches = self.encoded(validation.texts)
        self.fitting = self.encoded(self.calibration)
        if plan_of(loaded.model) is not None:
            restore(loaded.model)
        own = loaded.plan()
        self.trained = own if own is not None and own.needs_distillation() else None
        if self.trained and not self.trained.ranges:
            self.trained = calibrate(loaded.model, self.fitting, self.trained)
        with self.as_trained():
            self.reference = self.logits()
        self.exact = self._compare(self.reference)
        self.sites = calibrate(loaded.model, self.fitting[:1], base).ranges

    def encoded(self, texts: Sequence[str]) -> list[dict[str, Tensor]]:
        return [encode(self.loaded, texts[at : at + ROWS], self.length) for at in range(0, len(texts), ROWS)]

    def as_trained(self) -> AbstractContextManager[Any]:
        """The model with the functions that its weights are for."""
        return nullcontext() if self.trained is None else in_force(self.loaded.model, self.trained)

    def reaches(self, kind: str) -> bool:
        """Whether the model has any call of this kind."""
        if kind == POOL:
            return self._pools()
        return kind == "linear" or any(site.split("/")[1] == kind for site in self.sites)

    def _pools(self) -> bool:
        model = self.loaded.model
        stack = layers_path(model, layer_count(model))
        if stack is None or f"{stack}.0" not in layer_paths(model):
            return False
        try:
            calibrate(model, self.fitting[:1], Plan.preset(EXACT).replace(pool=(0,)))
        except (PlanError, RuntimeError):  # a model that computes something else with its tokens
            return False
        return True

    def quality(self, plan: Plan) -> Quality:
        """With the plan, calibrated."""
        model = self.loaded.model
        with in_force(model, calibrate(model, self.fitting, plan)):
            return self._compare(self.logits())

    def logits(self) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.loaded.model(**batch).logits for batch in self.batches])

    def compiled(self, plan: Plan) -> Compiled:
        fitted = calibrate(self.loaded.model, self.fitting, plan)
        return compile_bucket(self.loaded, self.length, fitted, self.calibration[:ROWS])

    def _compare(self, logits: Tensor) -> Quality:
        ours, theirs = logits.double().log_softmax(-1), self.reference.double().log_softmax(-1)
        divergence = (theirs.exp() * (theirs - ours)).sum(-1).mean()
        chosen = logits.argmax(-1)
        count = len(self.labels)
        return Quality(
            divergence=float(divergence),
            accuracy=wilson(int((chosen == self.labels).sum()), count),
            agreement=wilson(int((chosen == self.reference.argmax(-1)).sum()), count),
        )


def _walk(
    judge: _Judge,
    base: Plan,
    seconds: float,
    sensitivities: Sequence[Sensitivity],
    budget: float,
    metric: str,
    say: Progress,
) -> list[Point]:
    """Greedy, cheapest divergence per second first; then on past the budget, for the picture."""
    order = sorted((s for s in sensitivities if s.saving > 0), key=lambda s: max(s.quality.divergence, 1e-9) / s.saving)
    points = [_try(judge, base, seconds, [], budget, metric)]
    taken: list[Sensitivity] = []
    left: list[Sensitivity] = []
    for done, item in enumerate(order, start=1):
        if not _clashes(item, taken):
            point = _try(judge, base, seconds, [*taken, item], budget, metric)
            if point.within:
                taken.append(item)
                points.append(point)
            else:
                left.append(item)
        say("search", done, len(order))
    for item in left:
        if not _clashes(item, taken):
            taken.append(item)
            points.append(_try(judge, base, seconds, taken, budget, metric))
    return points


def _try(judge: _Judge, base: Plan, seconds: float, taken: Sequence[Sensitivity], budget: float, metric: str) -> Point:
    plan = with_changes(base, [s.change for s in taken])
    quality = judge.quality(plan)
    loss = quality.loss(judge.exact, metric)
    # Each saves a part of what the others leave: a sum of savings may be more than a query takes.
    expected = seconds * math.prod(1.0 - item.saving / seconds for item in taken)
    return Point(plan, len(taken), quality, loss, expected, loss <= budget)


def _clashes(item: Sensitivity, taken: Sequence[Sensitivity]) -> bool:
    """A layer has one choice of a kind: the first that was taken."""
    return any((t.change.layer, t.change.kind) == (item.change.layer, item.change.kind) for t in taken)


def _differs(base: Plan, kind: str, choice: Any, path: str) -> bool:
    if kind in ("linear", POOL):
        return kind == POOL or base.bits_of(path) != choice
    own = base.choice(kind, path)
    return own.model_dump() != (choice if isinstance(choice, dict) else {"name": choice, "options": {}})


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Sensitivity):
        return {**asdict(value), "label": value.change.label, "needs_distillation": value.change.needs_distillation}
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


def _point(point: Point) -> dict[str, Any]:
    row = {"taken": point.taken, "loss": point.loss, "seconds": point.seconds, "within": point.within}
    return {
        **row,
        "quality": asdict(point.quality),
        "price": point.price,
        "needs_distillation": point.plan.needs_distillation(),
        "choices": {p: {k: c.name for k, c in kinds.items()} for p, kinds in point.plan.overrides.items()},
        "bits": dict(point.plan.bits),
        "pool": list(point.plan.pool),
    }
