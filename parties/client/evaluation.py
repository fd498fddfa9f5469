"""A model judged as it is used: in torch, in fixed point, and through private sessions of three processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...approximations import Plan, calibrate
from ...models.artifacts import texts_of
from ...models.compile import AnswerOutOfRange, Compiled
from ...models.data import Dataset, Examples, check_unseen, load_as_trained
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
from ...versions import versions
from ..registry import reference, sessions
from ..reports.evaluation import Evaluation
from ..session.online import Answer, Progress
from .protocols import LocalProtocol, find_local
from .queries import ask_all

PROTOCOLS = ("torch", reference(), *sessions())
CALIBRATION = 384  # training texts that ranges are measured on, cut to each length; of 96 one answer in 200 was refused
TEACHER, EXACT, UNTOUCHED, APPROXIMATED = "teacher", "float32", "approximated, untouched", "approximated"


def evaluate(
    loaded: Loaded,
    data: str | Path | Dataset,
    *,
    plan: Plan | str | None = None,
    teacher: Loaded | None = None,
    protocols: Sequence[str] = ("torch", "clear"),
    private: int = 300,
    longest: int = 128,
    seed: int | None = None,
    threads: int = 1,
    timeout: float = 120,
    progress: Progress | None = None,
) -> Evaluation:
    """Judge a classifier on a data set's test part.

    data       what `load_data` takes: it is then read, and divided, as what the model was trained on; or a data set
    plan       a preset's name or a plan (default: the one in the model's folder, else `faithful`); one without ranges
               is calibrated on training texts
    teacher    what agreement is measured with; without one, the model itself in float32: with its plan, if it was
               trained with the plan in its folder, as its weights mean nothing with exact functions; else without
    protocols  torch: float32, and the same with the approximations; for a teacher also with the plan's approximations
               put into it untouched, to show what distillation won. clear: fixed point, the whole test set. Any
               other: private sessions on this machine, for `private` texts, stratified and drawn with the
               seed, as many to a query as it takes
    longest    tokens that texts are cut at, for every row alike
    seed       of what is drawn (default: of the split, else 0)

    A test part with rows that the model or the teacher was trained on is refused, where their folders tell.

    Errors: EvaluationError, DataError, PlanError, and those of a session.
    """
    check_protocols(protocols, PROTOCOLS)
    if not loaded.labels or loaded.kind not in ("classifier", "image"):
        raise EvaluationError(f"{loaded.name}: is no classifier; give one, such as a folder of `distill`")
    data = data if isinstance(data, Dataset) else load_as_trained(data, loaded.folder)
    if (loaded.kind == "image") != (data.kind == "image"):
        raise EvaluationError(f"{loaded.name} takes {loaded.kind} inputs, {data.name} holds {data.kind}s; they differ")
    for model in (loaded, teacher):
        if model is not None:
            check_unseen(model.folder, data)
    data = data.matched(loaded.labels)
    seed = seed if seed is not None else data.reading.seed if data.reading is not None else 0
    say = progress or (lambda what, done, total: None)
    test, labels = data.test.items, data.test.labels
    lengths = {length: len(found) for length, found in by_bucket(loaded, test, longest).items()}
    fitting = data.train.subset(CALIBRATION, seed).items
    own = loaded.plan() if plan is None else None
    trained = own is not None and own.needs_distillation()
    fitted = _fitted(loaded, plan or own or "faithful", fitting, lengths)
    found: dict[tuple[str, str], Predictions] = {}

    def run(name: str, protocol: str, make: Callable[[Callable[[int, int], None]], Predictions]) -> None:
        found[name, protocol] = make(lambda done, total: say(f"{name}, {protocol}", done, total))

    def taught(p: Callable[[int, int], None], plan: Plan | None = None) -> Predictions:
        assert teacher is not None
        return _renamed(torch_answers(teacher, test, longest, plan, progress=p), teacher, loaded)

    reference = TEACHER if teacher is not None else APPROXIMATED if trained else EXACT
    if teacher is not None:
        run(TEACHER, "torch", taught)
    if "torch" in protocols and teacher is not None:
        untouched = _fitted(teacher, fitted.replace(ranges={}, fits={}), fitting, lengths)
        run(UNTOUCHED, "torch", lambda p: taught(p, untouched))
    if "torch" in protocols or reference == APPROXIMATED:
        run(APPROXIMATED, "torch", lambda p: torch_answers(loaded, test, longest, fitted, progress=p))
    if reference == EXACT:
        run(EXACT, "torch", lambda p: torch_answers(loaded, test, longest, progress=p))
    if "clear" in protocols:
        run(APPROXIMATED, "clear", lambda p: clear_answers(loaded, test, longest, fitted, fitting, progress=p))
    private_ones = [protocol for protocol in sessions() if protocol in protocols]
    positions = _subset(data.test, private, seed) if private_ones else []
    options = {"threads": threads, "timeout": timeout}
    chosen = {position: test[position] for position in positions}
    for protocol in private_ones:
        local = find_local(protocol)
        run(
            APPROXIMATED,
            protocol,
            lambda p, local=local: _private_answers(local, loaded, chosen, longest, fitted, fitting, options, p),
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


def check_protocols(protocols: Sequence[str], known: Sequence[str]) -> None:
    """Errors: EvaluationError, naming what there is."""
    unknown = [p for p in protocols if p not in known]
    if unknown or not protocols:
        raise EvaluationError(f"protocol {unknown[0] if unknown else ''}: choose among {', '.join(known)}")


def _rows(
    found: Mapping[tuple[str, str], Predictions], reference: str, labels: Sequence[int], classes: int, seed: int
) -> list[Score]:
    """In the order of trust: the reference first, the private run last, which is compared with `clear` too."""
    order = [TEACHER, EXACT, UNTOUCHED, APPROXIMATED]
    rows = []
    for name, protocol in sorted(found, key=lambda key: (order.index(key[0]), PROTOCOLS.index(key[1]))):
        others = {}
        if (name, protocol) != (reference, "torch"):
            others["torch" if reference == APPROXIMATED else reference] = found[reference, "torch"]
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


def _private_answers(
    local: LocalProtocol,
    loaded: Loaded,
    texts: Mapping[int, Any],
    longest: int,
    plan: Plan,
    fitting: Sequence[Any],
    options: dict[str, Any],
    progress: Callable[[int, int], None],
) -> Predictions:
    """As a client would ask: a session for each length, with as many texts a query as fill it.

    `texts`: by their positions in the test set; `fitting`: those that ranges are measured on.
    """
    predicted: dict[int, int] = {}
    seconds: dict[str, list[float]] = {"online": [], "offline": []}
    positions = list(texts)
    for length, places in by_bucket(loaded, list(texts.values()), longest).items():

        def make(rows: int, length: int = length) -> Compiled:
            return compile_bucket(loaded, length, plan, fitting, rows=rows)

        compiled, taken = local.compile_for(len(places), make), iter(places)
        inputs = [encode(loaded, [texts[positions[place]]], length) for place in places]
        with local.open(compiled, **options) as session:
            for asked in ask_all(session, inputs, texts_of(compiled.program)):
                if isinstance(asked.answer, Answer):
                    count, timings = len(asked.outputs), asked.answer.timings
                    seconds["online"] += [timings.online_s / count] * count
                    seconds["offline"] += [timings.offline_s / count] * count
                elif not isinstance(asked.answer, AnswerOutOfRange):
                    raise asked.answer
                for outputs in asked.outputs:
                    predicted[positions[next(taken)]] = int(outputs[OUTPUT].argmax(-1)) if outputs else REFUSED
                progress(len(predicted), len(texts))
    return Predictions(predicted, {phase: float(np.median(values)) for phase, values in seconds.items() if any(values)})
