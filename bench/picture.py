"""One picture of a comparison: seconds and megabytes of everybody, offline work in a lighter shade."""

from pathlib import Path

from .contestants import ContestantRow
from .workloads import WorkloadError


def plot(file: Path, title: str, rows: list[ContestantRow]) -> None:
    """Errors: WorkloadError if there is no matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise WorkloadError("matplotlib is not installed; run: pip install -e '.[plots]'") from None
    figure = Figure(figsize=(10, 0.6 * len(rows) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"{row.name} ({row.parties})" for row in rows]
    sides = (
        (left, "seconds", [row.online_s for row in rows], [row.offline_s or 0.0 for row in rows]),
        (
            right,
            "MB, all parties",
            [row.online_bytes / 1e6 for row in rows],
            [(row.offline_bytes or 0) / 1e6 for row in rows],
        ),
    )
    for axes, unit, online, offline in sides:
        axes.barh(names, online, color="#2a6f97", label="online")
        axes.barh(names, offline, left=online, color="#a9d6e5", label="offline, ahead")
        axes.set_xlim(0, 1.05 * max(a + b for a, b in zip(online, offline, strict=True)))
        axes.set_xlabel(unit)
        axes.grid(axis="x", alpha=0.3)
    left.invert_yaxis()
    right.legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=150)
