"""A classifier's evaluation: a row for each way of computing, in figures and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...models.judging.evaluation import Score

HEADINGS = ("model", "protocol", "texts", "accuracy", "F1, macro", "agreement", "seconds a text")


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


def cells(row: Score) -> list[str]:
    """A row in words, under HEADINGS."""
    agreement = ", ".join(f"{100 * a.value:.1f} with {other}" for other, a in row.agreement.items())
    refused = f" ({row.refused} refused)" if row.refused else ""
    seconds = ", ".join(f"{value:.3g} {phase}" for phase, value in row.seconds.items())
    figures = [f"{100 * i.value:.1f} ({100 * i.low:.1f} to {100 * i.high:.1f})" for i in (row.accuracy, row.f1)]
    return [row.name, row.protocol, f"{row.count}{refused}", *figures, agreement, seconds]
