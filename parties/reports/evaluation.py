"""Evaluations of classifiers and language models, a row for each way of computing: figures, tables and pictures.

Matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...models.judging.evaluation import Interval, Score
from ...models.judging.perplexity import TextScore
from ...models.judging.search import Found
from ...protocols.errors import BlindformerError

TEXT_HEADINGS = (
    "model", "protocol", "tokens", "perplexity", "off float32", "most likely token as", "KL", "seconds a token",
)  # fmt: skip
COLOURS = {"torch": "#888888", "clear": "#2a78b5"}
PRIVATE = "#c44e35"


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


class FigureError(BlindformerError):
    """A picture that cannot be drawn."""


def new_figure() -> tuple[Any, Any]:
    """A matplotlib figure without a window, and its axes. Errors: FigureError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise FigureError("matplotlib is not installed, which draws: pip install 'blindformer[plots]'") from None
    figure = Figure(figsize=(7.0, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, dpi=150, format="png", metadata={"Software": "blindformer"})
    return out.getvalue()


def accuracy_figure(evaluations: Sequence[Evaluation]) -> bytes:
    """Accuracy, with its interval, against the seconds of one text: float32, fixed point, private (online)."""
    figure, axes = new_figure()
    for evaluation in evaluations:
        for row in evaluation.rows:
            seconds, accuracy = row.seconds.get("online") or next(iter(row.seconds.values()), None), row.accuracy
            if seconds is None:
                continue
            axes.errorbar(
                seconds,
                100 * accuracy.value,
                yerr=[[100 * (accuracy.value - accuracy.low)], [100 * (accuracy.high - accuracy.value)]],
                fmt="o",
                capsize=3,
                color=COLOURS.get(row.protocol, PRIVATE),
            )
            prefix = f"{evaluation.model}: " if len(evaluations) > 1 else ""
            axes.annotate(
                f"{prefix}{row.name}, {row.protocol}",
                (seconds, 100 * accuracy.value),
                textcoords="offset points",
                xytext=(6, 6),
                fontsize=7,
            )
    axes.set_xscale("log")
    axes.set_xlabel(f"{evaluations[0].headings[-1]} (private: online)")
    axes.set_ylabel("accuracy, %, with 95% intervals")
    axes.set_title(", ".join(dict.fromkeys(f"{e.data}, {e.test} {e.items}" for e in evaluations)), fontsize=9)
    axes.grid(alpha=0.3)
    return png(figure)


def evaluation_page(evaluations: Sequence[Evaluation]) -> str:
    """One HTML page with every table, every confusion matrix and the picture. It loads nothing from elsewhere."""
    picture = base64.b64encode(accuracy_figure(evaluations)).decode()
    body = [f'<img alt="accuracy against seconds" src="data:image/png;base64,{picture}" style="max-width:100%">']
    for evaluation in evaluations:
        body.append(f"<h2>{_text(evaluation.model)}, plan {_text(evaluation.plan)}, on {_text(evaluation.data)}</h2>")
        body.append(
            f"<p>{evaluation.tested} (seed {evaluation.seed}); {evaluation.subset} of them in private sessions. "
            "Intervals hold 95%: Wilson's for accuracy and agreement, "
            "a bootstrap's for F1.</p>"
        )
        body.append(_table(evaluation.headings, [cells(row) for row in evaluation.rows]))
        for row in evaluation.rows:
            body.append(f"<h3>{_text(row.name)}, {row.protocol}: true class by row, answer by column</h3>")
            matrix = [[name, *map(str, counts)] for name, counts in zip(evaluation.labels, row.confusion, strict=True)]
            body.append(_table(["", *evaluation.labels], matrix))
    style = "body{font:14px sans-serif;margin:2em;max-width:60em}td,th{padding:.2em .8em;text-align:right}"
    style += "td:first-child,th:first-child{text-align:left}"
    title = "Accuracy of private models"
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style>" + "\n".join(body) + "\n"


def frontier_figure(search: Found) -> bytes:
    """Points lost against seconds of a query: the plans of a search, the budget, and the plan that was chosen."""
    figure, axes = new_figure()
    for within, colour, label in (
        (True, COLOURS["clear"], "within the budget"),
        (False, COLOURS["torch"], "beyond it"),
    ):
        some = [p for p in search.points if p.within is within]
        axes.plot([p.seconds for p in some], [p.loss for p in some], "o", color=colour, label=label)
    axes.plot(search.chosen.seconds, search.chosen.loss, "*", markersize=15, color=PRIVATE, label="chosen")
    shapes = [(item.price["seconds"], item.quality.loss(search.exact, search.metric)) for item in search.smaller]
    middle = max((seconds for seconds, _ in shapes), default=0.0) / 2
    for number, (item, place) in enumerate(zip(search.smaller, shapes, strict=True)):
        right = place[0] > middle  # of the picture: the text goes to the left
        axes.plot(*place, "^", color=COLOURS["torch"], markerfacecolor="none", label="" if number else "smaller models")
        offset = (-6 if right else 6, 5 if number % 2 else -9)
        side = "right" if right else "left"
        axes.annotate(" ".join(item.options), place, textcoords="offset points", xytext=offset, ha=side, fontsize=7)
    axes.axhline(search.budget, color="#bbbbbb", linestyle="--", linewidth=1)
    axes.set_xlabel("seconds of a private query, expected")
    axes.set_ylabel(f"points of {search.metric} lost, untrained")
    axes.set_title(f"{search.model}, length {search.length}, {search.texts} validation texts", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png(figure)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
