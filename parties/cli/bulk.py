"""`blindformer query --file IN --out OUT`: every row of a table, answered once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from typer import Exit

from ...errors import BlindformerError
from .output import tell
from .progress import Phases


def answer_rows(
    phases: Phases,
    make: Callable[[], Any],
    files: list[Path],
    out: Path,
    form: str,
    **settings: Any,
) -> None:
    """`settings`: of BulkJob. Errors: BlindformerError; Exit 1 if a row has no answer."""
    from ..bulk.job import BulkJob
    from ..session.compute_slots import span

    if len(files) != 1:
        raise BlindformerError(f"--out {out}: is for the answers to one --file; {len(files)} were given")

    def show(done: int, rows: int, rate: float) -> None:
        left = f", {span((rows - done) / rate)} left" if rate and done < rows else ""
        phases.note("query", f"{done:,} of {rows:,} rows, {rate:.1f} a second{left}")
        phases.step("query", done, rows)

    report = BulkJob(files[0], out, make, told=show, **settings).run()
    before = f", {report.resumed:,} of them before" if report.resumed else ""
    failed = f"; {report.failed:,} have an error in its place" if report.failed else ""
    speed = f"{report.per_second:.1f} a second, {span(report.seconds)}"
    summary = f"{out}: {report.rows:,} rows{before}, each once{failed}   {speed}"
    tell("text" if form == "text" else "json", {"out": out, **asdict(report), "per_second": report.per_second}, summary)
    if report.failed:
        raise Exit(1)
