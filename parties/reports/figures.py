"""Pictures of results, as PNG, and pages that hold them. Matplotlib is imported when something is drawn."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from typing import Any

from ...models.judging.search import Found
from ...protocols.errors import BlindformerError
from .evaluation import HEADINGS, Evaluation, cells

COLOURS = {"torch": "#888888", "clear": "#2a78b5"}
PRIVATE = "#c44e35"


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
            seconds = row.seconds.get("online") or next(iter(row.seconds.values()), None)
            if seconds is None:
                continue
            accuracy = row.accuracy
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
    axes.set_xlabel("seconds a text (private: online)")
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
            f"<p>{evaluation.tested} (seed {evaluation.seed}); "
            f"{evaluation.subset} of them in private sessions. Intervals hold 95%: Wilson's for accuracy and "
            "agreement, a bootstrap's for F1.</p>"
        )
        body.append(_table(HEADINGS, [cells(row) for row in evaluation.rows]))
        for row in evaluation.rows:
            body.append(f"<h3>{_text(row.name)}, {row.protocol}: true class by row, answer by column</h3>")
            matrix = [[name, *map(str, counts)] for name, counts in zip(evaluation.labels, row.confusion, strict=True)]
            body.append(_table(["", *evaluation.labels], matrix))
    style = "body{font:14px sans-serif;margin:2em;max-width:60em}td,th{padding:.2em .8em;text-align:right}"
    style += "td:first-child,th:first-child{text-align:left}"
    title = "Accuracy of private models"
    return f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{style}</style>" + "\n".join(body) + "\n"


def frontier_figure(found: Found) -> bytes:
    """Points lost against seconds of a query: the plans of a search, the budget, and the plan that was chosen."""
    figure, axes = new_figure()
    for within, colour, label in (
        (True, COLOURS["clear"], "within the budget"),
        (False, COLOURS["torch"], "beyond it"),
    ):
        points = [p for p in found.points if p.within is within]
        axes.plot([p.seconds for p in points], [p.loss for p in points], "o", color=colour, label=label)
    axes.plot(found.chosen.seconds, found.chosen.loss, "*", markersize=15, color=PRIVATE, label="chosen")
    axes.axhline(found.budget, color="#bbbbbb", linestyle="--", linewidth=1)
    axes.set_xlabel("seconds of a private query, expected")
    axes.set_ylabel(f"points of {found.metric} lost, untrained")
    axes.set_title(f"{found.model}, length {found.length}, {found.texts} validation texts", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return png(figure)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_text(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _text(value: Any) -> str:
    return html.escape(str(value))
