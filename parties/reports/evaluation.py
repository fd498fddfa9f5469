"""Evaluations of classifiers and language models, a row for each way of computing: figures and tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...models.judging.evaluation import Interval, Score
from ...models.judging.perplexity import TextScore

TEXT_HEADINGS = (
    "model", "protocol", "tokens", "perplexity", "off float32", "most likely token as", "KL", "seconds a token",
)  # fmt: skip


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
    def headings(self) -> tuple[str, ...]:
        """The headings of `cells`."""
        one = "an image" if self.items == "images" else "a text"
        return ("model", "protocol", self.items, "accuracy", "F1, macro", "agreement", f"seconds {one}")

    @property
    def tested(self) -> str:
        """In words: how many, and how they were cut."""
        return f"{self.test} test {self.items}" + (f", cut at {self.longest} tokens" if self.items == "texts" else "")

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "labels": list(self.labels), "rows": [row.to_dict() for row in self.rows]}

    def row(self, name: str, protocol: str) -> Score | None:
        return next((row for row in self.rows if (row.name, row.protocol) == (name, protocol)), None)


@dataclass(frozen=True)
class TextEvaluation:
    """All rows for one language model and one text.

    prefix   tokens that begin every window, which are not judged
    window   tokens of a window, of which there are `windows`
    attended how many of them a token reads, itself and the last before it; 0: all
    tokens   of the text; at all but the last one a next token is judged
    subset   tokens that went through private sessions (0: none)
    """

    model: str
    plan: str
    plan_hash: str
    text: str
    system: str
    prefix: int
    window: int
    windows: int
    tokens: int
    subset: int
    rows: list[TextScore]
    versions: dict[str, str]
    attended: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "rows": [row.to_dict() for row in self.rows]}

    def row(self, protocol: str) -> TextScore | None:
        return next((row for row in self.rows if row.protocol == protocol), None)


def text_cells(row: TextScore) -> list[str]:
    """A row in words, under TEXT_HEADINGS."""
    off = "" if not row.agreement else f"{100 * (row.ratio - 1):+.2f} % of {row.float32:.2f}"
    divergence = "" if not row.agreement else f"{row.kl:.1e}"
    figures = [f"{row.perplexity:.2f}", off, _agreements(row.agreement), divergence, f"{row.seconds:.3g}"]
    return [row.name, row.protocol, _counted(row), *figures]


def cells(row: Score) -> list[str]:
    """A row in words, under an evaluation's `headings`."""
    seconds = ", ".join(f"{value:.3g} {phase}" for phase, value in row.seconds.items())
    figures = [f"{100 * i.value:.1f} ({100 * i.low:.1f} to {100 * i.high:.1f})" for i in (row.accuracy, row.f1)]
    return [row.name, row.protocol, _counted(row), *figures, _agreements(row.agreement), seconds]


def _counted(row: Score | TextScore) -> str:
    return f"{row.count}" + (f" ({row.refused} refused)" if row.refused else "")


def _agreements(agreements: dict[str, Interval]) -> str:
    return ", ".join(f"{100 * a.value:.1f} with {other}" for other, a in agreements.items())
