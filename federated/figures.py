"""Accuracy, and epsilon where there is one, over a run's rounds."""

from __future__ import annotations

from ..parties.figures import COLOURS, new_figure, png
from .federate import Federated


def rounds_figure(found: Federated) -> bytes:
    """A PNG. Errors: FigureError without matplotlib."""
    figure, axes = new_figure()
    numbers = [r.number for r in found.rounds]
    axes.plot(numbers, [100 * r.accuracy for r in found.rounds], "o-", markersize=3, color=COLOURS["clear"])
    axes.set_xlabel("round")
    axes.set_ylabel("accuracy on validation, %")
    axes.grid(alpha=0.3)
    settings = found.report["settings"]
    if found.report["epsilon"] is not None:
        other = axes.twinx()
        other.plot(numbers, [r.epsilon for r in found.rounds], "--", color=COLOURS["beaver"])
        other.set_ylabel(f"epsilon at delta {settings['delta']:g} (dashed)")
    about = [found.report["data"]["name"], f"{settings['clients']} clients", settings["strategy"], settings["plan"]]
    axes.set_title(", ".join(about), fontsize=9)
    return png(figure)
