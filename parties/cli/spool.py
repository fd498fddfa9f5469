"""`blindformer spool DIR`: what a folder of correlations made ahead holds."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .output import MB, Format, FormatOption, console, emit, table


def spool(
    folder: Annotated[Path, typer.Argument(help="A server's, a helper's or a client's spool.")],
    form: FormatOption = Format.text,
) -> None:
    """Correlations that are ready, were used, were skipped because the other party has them no more, or were broken."""
    from ..session.spool import Spool

    found = Spool(folder, must_exist=True)
    rows, used = found.rows(), len(found.ledger.audit())
    ready = sum(row.ready for row in rows)
    if form is Format.json:
        emit({"folder": str(folder), "ready": ready, "noted": used, "sessions": [asdict(row) for row in rows]})
        return
    shown = table("session", "program", "made", "ready", "used", "skipped", "broken", "MB", right=(3, 4, 5, 6, 7))
    for row in rows:
        made = datetime.datetime.fromtimestamp(row.created, datetime.UTC)
        counts = (str(count) for count in (row.ready, row.used, row.skipped, row.broken))
        shown.add_row(row.session[:8], row.program[:12], f"{made:%Y-%m-%d %H:%M} UTC", *counts, f"{row.bytes / MB:.1f}")
    if rows:
        console().print(shown)
    console().print(f"{ready} ready; {used} uses noted, live ones among them")
