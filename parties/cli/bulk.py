"""`blindformer query --file IN --out OUT`: every row of a table, answered once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...errors import BlindformerError
from .output import tell
from .progress import Phases


def answer_rows(
    phases: Phases,
    make: Callable[[], Any],
    files: list[Path],
    out: Path,
    field: str | None,
    sessions: int,
    engine: str,
    form: str,
) -> None:
    """Errors: BlindformerError."""
    from ..bulk.job import BulkJob
    from ..session.compute_slots import span

    if len(files) != 1:
        raise BlindformerError(f"--out {out}: is for the answers to one --file; {len(files)} were given")

    def told(done: int, rows: int, rate: float) -> None:
        left = f", {span((rows - done) / rate)} left" if rate and done < rows else ""
        phases.note("query", f"{done:,} of {rows:,} rows, {rate:.1f} a second{left}")
        phases.step("query", done, rows)

    fields = tuple(name.strip() for name in (field or "text").split(","))
    found = BulkJob(files[0], out, make, fields=fields, sessions=sessions, engine=engine, told=told).run()
    before = f", {found.resumed:,} of them before" if found.resumed else ""
    failed = f"; {found.failed:,} have an error in its place" if found.failed else ""
    speed = f"{found.per_second:.1f} a second, {span(found.seconds)}"
    said = f"{out}: {found.rows:,} rows{before}, each once{failed}   {speed}"
    tell("text" if form == "text" else "json", {"out": out, **asdict(found), "per_second": found.per_second}, said)
