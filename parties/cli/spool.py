"""`blindformer spool DIR`: what a folder of preprocessed correlations holds."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument

from . import options
from .output import mb, table, tell


def spool(
    folder: Annotated[
        Path, Argument(help="The spool of a server, a helper or a client: a folder of preprocessed correlations.")
    ],
    database: options.Database = None,
    form: options.Form = "text",
) -> None:
    """Correlations that are ready, were used, were skipped because the other party has them no more, or were broken."""
    from ..session.spool import Spool

    found = Spool(folder, database=database, must_exist=True)
    rows, used = found.rows(), len(found.ledger.audit())
    ready = sum(row.ready for row in rows)
    shown = [
        (
            row.session[:8],
            row.program[:12],
            f"{datetime.datetime.fromtimestamp(row.created, datetime.UTC):%Y-%m-%d %H:%M} UTC",
            *(row.ready, row.used, row.skipped, row.broken),
            mb(row.bytes, 1),
        )
        for row in rows
    ]
    headings = ("session", "program", "made", "ready", "used", "skipped", "broken", "MB")
    tables = [table(*headings, right=range(3, 8), rows=shown)] if rows else []
    told = {"folder": folder, "ready": ready, "noted": used, "sessions": [asdict(row) for row in rows]}
    tell(form, told, *tables, f"{ready} ready; {used} uses noted, live ones among them")
