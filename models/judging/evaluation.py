"""How good a classifier's answers are, in torch and in fixed point: the figures, their intervals, and the answers.

A text is padded to the least bucket that holds it, as a client would pad it, and cut at the longest one; images have
one size. Every way of computing gets the same inputs, so that what differs between two rows is the computation alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ...approximations import Plan, approximate, plan_of, restore
from ...protocols.clear import ClearEngine
from ...protocols.errors import BlindformerError
from ..compile import AnswerOutOfRange, Compiled, compile, decode_outputs
from ..loading.load import BUCKETS, Loaded
from ..loading.media import image_of
from ..program.interpreter import interpret

Z = 1.959964  # standard deviations on either side that hold 95% of a normal distribution
RESAMPLES = 1000
REFUSED = -1  # the prediction of an answer that the client refuses as out of range; it counts as wrong
OUTPUT = "logits"
OUTPUTS = {"classifier": OUTPUT, "image": OUTPUT, "sentence": "sentence_embedding"}
"""What is judged of a model, by its kind."""
Progress = Callable[[int, int], None]
Item = TypeVar("Item")


class EvaluationError(BlindformerError):
    """A model or data that cannot be evaluated."""


@dataclass(frozen=True)
class Interval:
    """A figure with its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Score:
    """One way of computing, judged. Accuracies and agreements have Wilson intervals, F1 a bootstrap's.

    confusion  rows: the true class; columns: the answer's (refused answers are in none)
    agreement  by the name of another row, over the texts that both have answered
    seconds    of one text, by phase: the median
    refused    answers that the client would not take, as they lay far outside the calibrated range
    """

    name: str
    protocol: str
    count: int
    accuracy: Interval
    f1: Interval
    confusion: list[list[int]]
    agreement: dict[str, Interval] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    refused: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Predictions:
    """Predicted classes by position in the test set, and the seconds of one text by phase."""

    predicted: dict[int, int]
    seconds: dict[str, float] = field(default_factory=dict)


def wilson(hits: int, count: int) -> Interval:
    """A proportion with Wilson's score interval (E. B. Wilson, J. Am. Stat. Assoc. 22, 1927)."""
    if not count:
        return Interval(math.nan, 0.0, 1.0)
    p, z2 = hits / count, Z * Z
    middle = (p + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(p * (1 - p) / count + z2 / (4 * count * count))
    # At 0 and 1 the ends are exact; floats would miss them by a rounding.
    return Interval(p, 0.0 if not hits else middle - half, 1.0 if hits == count else middle + half)


def macro_f1(labels: np.ndarray, predicted: np.ndarray, classes: int) -> float:
    """The mean over classes of 2 TP / (2 TP + FP + FN); classes that neither side names do not count."""
    scores = []
    for c in range(classes):
        ours, theirs = predicted == c, labels == c
        total = int(ours.sum()) + int(theirs.sum())
        if total:
            scores.append(2 * int((ours & theirs).sum()) / total)
    return float(np.mean(scores)) if scores else math.nan


def score(
    name: str,
    protocol: str,
    answers: Predictions,
    labels: Sequence[int],
    classes: int,
    others: Mapping[str, Predictions] | None = None,
    seed: int = 0,
) -> Score:
    """Judge the answers by the labels (of the whole test set), and compare them with those of other rows."""
    at = sorted(answers.predicted)
    predicted = np.array([answers.predicted[i] for i in at], dtype=int)
    truth = np.array([labels[i] for i in at], dtype=int)
    confusion = np.zeros((classes, classes), dtype=int)
    kept = predicted != REFUSED
    np.add.at(confusion, (truth[kept], predicted[kept]), 1)
    random = np.random.default_rng(seed)
    draws = (random.integers(0, len(at), len(at)) for _ in range(RESAMPLES if at else 0))
    resampled = [macro_f1(truth[d], predicted[d], classes) for d in draws]
    low, high = np.quantile(resampled, [0.025, 0.975]) if resampled else (math.nan, math.nan)
    return Score(
        name=name,
        protocol=protocol,
        count=len(at),
        accuracy=wilson(int((predicted == truth).sum()), len(at)),
        f1=Interval(macro_f1(truth, predicted, classes), float(low), float(high)),
        confusion=confusion.tolist(),
        agreement={other: _agreement(answers, theirs) for other, theirs in (others or {}).items()},
        seconds=answers.seconds,
        refused=int((~kept).sum()),
    )


def _agreement(ours: Predictions, theirs: Predictions) -> Interval:
    both = [i for i in ours.predicted if i in theirs.predicted]
    return wilson(sum(ours.predicted[i] == theirs.predicted[i] for i in both), len(both))


# --- answers ---------------------------------------------------------------------------------------------------------


def check_classifier(loaded: Loaded) -> None:
    """Errors: EvaluationError for a model that classifies no texts."""
    if loaded.kind != "classifier":
        raise EvaluationError(
            f"{loaded.name}: is no classifier of texts; give one, such as a folder of `distill` or `train`"
        )


def by_bucket(loaded: Loaded, texts: Sequence[Any], longest: int) -> dict[int, list[int]]:
    """Positions of the texts by the length they are padded to, the shortest first. Longer ones are cut.

    Images have the one length 0.
    """
    if loaded.kind == "image":
        return {0: list(range(len(texts)))}
    if loaded.kind != "sentence":
        check_classifier(loaded)
    longest = min(longest, loaded.positions or longest)
    lengths = [bucket for bucket in BUCKETS if bucket < longest] + [longest]
    buckets: dict[int, list[int]] = {}
    for i, text in enumerate(texts):
        tokens = min(loaded.tokens(text), longest)
        buckets.setdefault(next(length for length in lengths if length >= tokens), []).append(i)
    return dict(sorted(buckets.items()))


def encode(loaded: Loaded, texts: Sequence[Any], length: int) -> dict[str, Tensor]:
    """The model's inputs, [texts, length]; of images (uint8 [H, W] each) what its processor makes of them."""
    if loaded.kind == "image":
        rows = [loaded.encode_file(image_of(pixels)) for pixels in texts]
    else:
        rows = [loaded.encode(text, length, truncate=True) for text in texts]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def torch_answers(
    loaded: Loaded,
    texts: Sequence[Any],
    longest: int,
    plan: Plan | None = None,
    *,
    rows: int = 32,
    progress: Progress | None = None,
) -> Predictions:
    """The model's answers in float32, with a plan's approximations if one is given."""
    before, predicted, seconds = plan_of(loaded.model), {}, []
    if plan is not None:
        approximate(loaded.model, plan)
    try:
        with torch.no_grad():
            for length, positions in by_bucket(loaded, texts, longest).items():
                for some in _groups(positions, rows):
                    inputs = encode(loaded, [texts[i] for i in some], length)
                    started = time.perf_counter()
                    chosen = loaded.model(**inputs).logits.argmax(-1)
                    seconds += [(time.perf_counter() - started) / len(some)] * len(some)
                    predicted.update(zip(some, chosen.tolist(), strict=True))
                    if progress:
                        progress(len(predicted), len(texts))
    finally:
        if plan is not None:
            restore(loaded.model) if before is None else approximate(loaded.model, before)
    return Predictions(predicted, {"torch": _median(seconds)})


def compile_bucket(loaded: Loaded, length: int, plan: Plan, texts: Sequence[Any], *, rows: int = 1) -> Compiled:
    """The program for `rows` texts of one length. Its ranges are measured on `texts`, cut to the length.

    Whatever the number of rows, the same texts give the same ranges, so the same scales, and the same integers.
    """
    groups = [some if len(some) == rows else (some * rows)[:rows] for some in _groups(list(texts), rows)]
    batches = [encode(loaded, group, length) for group in groups]
    return compile(loaded.model, batches, plan, outputs=[OUTPUTS[loaded.kind]], name=loaded.name)


def clear_outputs(
    loaded: Loaded, texts: Sequence[Any], longest: int, plan: Plan, calibration: Sequence[Any], *, rows: int = 16
) -> Iterator[tuple[int, Tensor | None, float]]:
    """(position, output [1, ...], seconds) of each text in fixed point, on the reference protocol: what every private
    run computes but for roundings. None: an answer that a client refuses as out of range."""
    output = OUTPUTS[loaded.kind]
    for length, positions in by_bucket(loaded, texts, longest).items():
        compiled = compile_bucket(loaded, length, plan, calibration, rows=rows)
        for some in _groups(positions, rows):
            padded = (some * rows)[:rows]
            started = time.perf_counter()
            sources = compiled.encode_inputs(encode(loaded, [texts[i] for i in padded], length))
            engine = ClearEngine({**sources, **compiled.weights, **compiled.constants})
            result = interpret(compiled.program, engine).outputs[output]
            seconds = (time.perf_counter() - started) / len(some)
            for row, i in enumerate(some):
                yield i, _decoded(compiled, output, result[row : row + 1]), seconds


def clear_answers(
    loaded: Loaded,
    texts: Sequence[Any],
    longest: int,
    plan: Plan,
    calibration: Sequence[Any],
    *,
    rows: int = 16,
    progress: Progress | None = None,
) -> Predictions:
    """A classifier's answers in fixed point (`clear_outputs`)."""
    predicted, seconds = {}, []
    for i, logits, took in clear_outputs(loaded, texts, longest, plan, calibration, rows=rows):
        predicted[i] = REFUSED if logits is None else int(logits.argmax())
        seconds.append(took)
        if progress:
            progress(len(predicted), len(texts))
    return Predictions(predicted, {"clear": _median(seconds)})


def _decoded(compiled: Compiled, output: str, result: Tensor) -> Tensor | None:
    try:
        return decode_outputs(compiled.program, {output: result})[output]
    except AnswerOutOfRange:
        return None


def _groups(items: list[Item], size: int) -> list[list[Item]]:
    return [items[at : at + size] for at in range(0, len(items), size)]


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else math.nan
