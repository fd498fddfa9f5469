"""What a fault campaign found, victim by victim, and its table."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass
class Tally:
    """What the kills of one victim did.

    survived   every other party ended its session with a typed error (or to its end) in time, left no process, and the
               next queries were answered right
    unharmed   the client's session went on to its end, although its victim was killed
    lost       queries without an answer
    slowest_s  from the kill until the last process of a broken session was gone
    """

    victim: str
    tried: int = 0
    survived: int = 0
    unharmed: int = 0
    asked: int = 0
    lost: int = 0
    wrong: int = 0
    orphans: int = 0
    slowest_s: float = 0.0


@dataclass
class Campaign:
    """`broken`: each promise that was not kept, where and when."""

    life: str
    instants: int
    seed: int
    timeout_s: float
    tallies: list[Tally] = field(default_factory=list)
    parts: dict[str, int] = field(default_factory=dict)
    used: int = 0
    reused: int = 0
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    machine: dict[str, Any] = field(default_factory=dict)


def table(report: Campaign) -> Table:
    title = f"{report.life}: SIGKILL at {report.instants} instants each, seed {report.seed}"
    grid = Table(title=f"{title}, timeout {report.timeout_s:g} s")
    for column in ("killed", "tried", "survived", "unharmed", "queries", "lost", "wrong", "orphans", "slowest end"):
        grid.add_column(column, justify="left" if column == "killed" else "right")
    for tally in report.tallies:
        row = (tally.tried, tally.survived, tally.unharmed, tally.asked, tally.lost, tally.wrong, tally.orphans)
        grid.add_row(tally.victim, *map(str, row), f"{tally.slowest_s:.2f} s")
    return grid
