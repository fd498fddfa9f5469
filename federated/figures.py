"""Accuracy, and epsilon where there is one, over a run's rounds."""

from __future__ import annotations

from ..parties.reports.evaluation import COLOURS, PRIVATE, new_figure, png
from .federate import Federated


def rounds_figure(result: Federated) -> bytes:
    """A PNG. Errors: FigureError without matplotlib."""
    figure, axes = new_figure()
    numbers = [r.number for r in result.rounds]
    axes.plot(numbers, [100 * r.accuracy for r in result.rounds], "o-", markersize=3, color=COLOURS["clear"])
    test = 100 * result.report["test_accuracy"]
    axes.axhline(test, linestyle=":", color=COLOURS["torch"])
    axes.annotate(f"the model that came out, on test: {test:.1f} %", (numbers[0], test), fontsize=8, va="bottom")
    axes.set_xlabel("round")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("accuracy on validation, %")
    axes.grid(alpha=0.3)
    settings = result.report["settings"]
    if result.report["epsilon"] is not None:
        other = axes.twinx()
        other.plot(numbers, [r.epsilon for r in result.rounds], "--", color=PRIVATE)
        other.set_ylim(bottom=0)
        other.set_ylabel(f"epsilon at delta {settings['delta']:g} (dashed)", color=PRIVATE)
    spread = f" (Dirichlet {settings['alpha']:g})" if settings["alpha"] else ""
    clients = f"{settings['clients']} clients{spread}"
    about = [result.report["data"]["name"], clients, settings["strategy"], f"plan {result.plan.name}"]
    axes.set_title(", ".join(about), fontsize=9)
    return png(figure)
