"""A model judged as it is used: in torch, in fixed point, and through private sessions of three processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...approximations import Plan, calibrate
from ...models.artifacts import texts_of
from ...models.compile import AnswerOutOfRange, Compiled
from ...models.data import Dataset, Examples
from ...models.judging.evaluation import (
    OUTPUT,
    REFUSED,
    EvaluationError,
    Predictions,
    Score,
    by_bucket,
    clear_answers,
    compile_bucket,
    encode,
    score,
    torch_answers,
)
from ...models.loading.load import Loaded
from ..registry import sessions
from ..session.parties import numbered
from .compare import compile_for, in_queries, versions
from .protocols import REFERENCE, Kind, LocalSession, find_kind

PROTOCOLS = ("torch", REFERENCE, *sessions())
CALIBRATION = 384  # training texts that ranges are measured on, cut to each length; of 96 one answer in 200 was refused
TEACHER, EXACT, UNTOUCHED, APPROXIMATED = "teacher", "float32", "approximated, untouched", "approximated"
Progress = Callable[[str, int, int], None]  # what, done, total


@dataclass(frozen=True)
class Evaluation:
    """All rows for one model and one data set. `subset`: texts that went through private sessions (0: none)."""

    model: str
    plan: str
    plan_hash: str
    data: str
    labels: tuple[str, ...]
    seed: int
    longest: int
    lengths: dict[int, int]
    test: int
    subset: int
    rows: list[Score]
    versions: dict[str, str]

    @property
    def items(self) -> str:
        return "images" if set(self.lengths) == {0} else "texts"

    @property
    def tested(self) -> str:
        """In words: how many, and how they were cut."""
        return f"{self.test} test {self.items}" + (f", cut at {self.longest} tokens" if self.items == "texts" else "")

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "labels": list(self.labels), "rows": [row.to_dict() for row in self.rows]}

    def row(self, name: str, protocol: str) -> Score | None:
        return next((row for row in self.rows if (row.name, row.protocol) == (name, protocol)), None)


def evaluate(
    loaded: Loaded,
    data: Dataset,
    *,
    plan: Plan | str | None = None,
    teacher: Loaded | None = None,
    protocols: Sequence[str] = ("torch", "clear"),
    private: int = 300,
    longest: int = 128,
    seed: int = 0,
    threads: int = 1,
    timeout: float = 120,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a classifier on a data set's test part.

    plan       a preset's name or a plan (default: the one in the model's folder, else `faithful`); one without ranges
               is calibrated on training texts
    teacher    what agreement is measured with; without one, the model itself in float32
    protocols  torch: float32, and the same with the approximations; for a teacher also with the plan's approximations
               put into it untouched, to show what distillation won. clear: fixed point, the whole test set. Any
               other: private sessions on this machine, for `private` texts, stratified and drawn with the
               seed, as many to a query as it takes
    longest    tokens that texts are cut at, for every row alike

    Errors: EvaluationError, DataError, PlanError, and those of a session.
    """
    unknown = [p for p in protocols if p not in PROTOCOLS]
    if unknown or not protocols:
        raise EvaluationError(f"protocol {unknown[0] if unknown else ''}: choose among {', '.join(PROTOCOLS)}")
    if not loaded.labels or loaded.kind not in ("classifier", "image"):
        raise EvaluationError(f"{loaded.name}: is no classifier; give one, such as a folder of `distill`")
    if (loaded.kind == "image") != (data.kind == "image"):
        raise EvaluationError(f"{loaded.name} takes {loaded.kind} inputs, {data.name} holds {data.kind}s; they differ")
    data = data.matched(loaded.labels)
    say = progress or (lambda what, done, total: None)
    test, labels = data.test.items, data.test.labels
    lengths = {length: len(found) for length, found in by_bucket(loaded, test, longest).items()}
    fitting = data.train.subset(CALIBRATION, seed).items
    fitted = _fitted(loaded, plan or loaded.plan() or "faithful", fitting, lengths)
    found: dict[tuple[str, str], Predictions] = {}

    def run(name: str, protocol: str, make: Callable[[Callable[[int, int], None]], Predictions]) -> None:
        found[name, protocol] = make(lambda done, total: say(f"{name}, {protocol}", done, total))

    reference = TEACHER if teacher is not None else EXACT
    if teacher is not None:
        run(TEACHER, "torch", lambda p: _renamed(torch_answers(teacher, test, longest, progress=p), teacher, loaded))
    if "torch" in protocols:
        if teacher is not None:
            own = _fitted(teacher, fitted.replace(ranges={}, fits={}), fitting, lengths)
            name = UNTOUCHED
            run(
                name,
                "torch",
                lambda p: _renamed(torch_answers(teacher, test, longest, own, progress=p), teacher, loaded),
            )
        run(APPROXIMATED, "torch", lambda p: torch_answers(loaded, test, longest, fitted, progress=p))
    if teacher is None:
        run(EXACT, "torch", lambda p: torch_answers(loaded, test, longest, progress=p))
    if "clear" in protocols:
        run(APPROXIMATED, "clear", lambda p: clear_answers(loaded, test, longest, fitted, fitting, progress=p))
    private_ones = [protocol for protocol in sessions() if protocol in protocols]
    positions = _subset(data.test, private, seed) if private_ones else []
    for protocol in private_ones:
        asking = PrivateSessions(protocol, find_kind(protocol), {"threads": threads, "timeout": timeout})
        run(
            APPROXIMATED,
            protocol,
            lambda p, asking=asking: asking.answers(loaded, test, positions, longest, fitted, fitting, p),
        )
    return Evaluation(
        model=loaded.name,
        plan=fitted.name,
        plan_hash=fitted.content_hash(),
        data=data.name,
        labels=data.labels,
        seed=seed,
        longest=longest,
        lengths=lengths,
        test=len(test),
        subset=len(positions),
        rows=_rows(found, reference, labels, len(data.labels), seed),
        versions=versions(),
    )


def _rows(
    found: Mapping[tuple[str, str], Predictions], reference: str, labels: Sequence[int], classes: int, seed: int
) -> list[Score]:
    """In the order of trust: the reference first, the private run last, which is compared with `clear` too."""
    order = [TEACHER, EXACT, UNTOUCHED, APPROXIMATED]
    rows = []
    for name, protocol in sorted(found, key=lambda key: (order.index(key[0]), PROTOCOLS.index(key[1]))):
        others = {} if name == reference else {reference: found[reference, "torch"]}
        if protocol in sessions() and (name, "clear") in found:
            others["clear"] = found[name, "clear"]
        rows.append(score(name, protocol, found[name, protocol], labels, classes, others, seed))
    return rows


def _fitted(loaded: Loaded, plan: Plan | str, texts: Sequence[Any], lengths: Mapping[int, int]) -> Plan:
    if isinstance(plan, Plan) and plan.ranges:
        return plan
    return calibrate(
        loaded.model, [encode(loaded, texts[i : i + 16], n) for n in lengths for i in range(0, len(texts), 16)], plan
    )


def _renamed(answers: Predictions, of: Loaded, to: Loaded) -> Predictions:
    """A teacher's classes by the student's indices: by name, or as they are where names say nothing."""
    index = {name: i for i, name in to.labels.items()}
    if not of.labels or set(of.labels.values()) != set(index):
        if len(of.labels) != len(index):
            raise EvaluationError(
                f"{of.name} has {len(of.labels)} classes, {to.name} {len(index)}: give the teacher that it comes from"
            )
        return answers
    return Predictions({i: index[of.labels[c]] for i, c in answers.predicted.items()}, answers.seconds)


def _subset(test: Examples, count: int, seed: int) -> list[int]:
    """Positions of a stratified part of the test set."""
    numbered = Examples([str(i) for i in range(len(test))], test.labels)
    return [int(i) for i in numbered.subset(count, seed).texts]


@dataclass(frozen=True)
class PrivateSessions:
    """Asks as a client would: sessions of processes over TLS, one a length, with as many texts a query as fill it."""

    protocol: str
    kind: Kind
    options: dict[str, Any]

    def answers(
        self,
        loaded: Loaded,
        texts: Sequence[Any],
        positions: Sequence[int],
        longest: int,
        plan: Plan,
        fitting: Sequence[Any],
        progress: Callable[[int, int], None],
    ) -> Predictions:
        """Of the texts at these positions. `fitting`: texts that ranges are measured on."""
        predicted: dict[int, int] = {}
        seconds: dict[str, list[float]] = {"online": [], "offline": []}
        chosen = [texts[i] for i in positions]
        for length, places in by_bucket(loaded, chosen, longest).items():

            def make(rows: int, length: int = length) -> Compiled:
                return compile_bucket(loaded, length, plan, fitting, rows=rows)

            compiled = compile_for(self.protocol, len(places), make)
            with self.kind.start(compiled, numbered(2), **self.options) as session:
                for some, count in in_queries(places, texts_of(compiled.program)):
                    found = _ask(session, loaded, [chosen[place] for place in some], count, length, seconds)
                    predicted.update(zip((positions[place] for place in some), found, strict=False))
                    progress(len(predicted), len(positions))
        return Predictions(
            predicted, {phase: float(np.median(values)) for phase, values in seconds.items() if any(values)}
        )


def _ask(
    session: LocalSession, loaded: Loaded, texts: list[Any], count: int, length: int, seconds: dict[str, list[float]]
) -> list[int]:
    """Classes of the first `count` texts of one query. One answer out of range spoils those beside it, so that each is
    asked alone then."""
    try:
        answer = session.query(encode(loaded, texts, length))
    except AnswerOutOfRange:
        if count == 1:
            return [REFUSED]
        return [_ask(session, loaded, [text] * len(texts), 1, length, seconds)[0] for text in texts[:count]]
    seconds["online"] += [answer.timings.online_s / count] * count
    seconds["offline"] += [answer.timings.offline_s / count] * count
    return answer.outputs[OUTPUT].argmax(-1)[:count].tolist()
