"""`blindformer precompute`: correlations for later queries; without a number of them, what a folder holds."""

from __future__ import annotations

import datetime
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from ...errors import BlindformerError
from ..config import load_settings
from ..launch import LOCAL
from . import options
from .items import folder_first
from .output import mb, print_result, table
from .steps import loading


def precompute(
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="[FOLDER] [COUNT]",
            help="The client's part of a compiled folder; then the number of queries (default: show the store).",
        ),
    ] = None,
    length: Annotated[
        int | None,
        Option(
            help="Padded length; 1: answer tokens of a public chat model or encoder-decoder (default: the only one)."
        ),
    ] = None,
    sessions: Annotated[
        int,
        Option(
            min=1, max=256, help="Sessions at once, each a process; without a dealer, each takes 1 to 2 GB for MiniLM."
        ),
    ] = 1,
    config: options.Config = None,
    store: options.Store = None,
    server: options.Server = None,
    dealer: options.Dealer = None,
    adapter: options.Adapter = None,
    certs: options.ClientCerts = None,
    form: options.Form = "text",
    local: options.Local = None,
) -> None:
    """Preprocess queries: server and client store a part each, which `blindformer query` uses first.

    Without a number, show what --store holds; it may be a server's or helper's folder.
    """
    if local is not None:
        with loading(1, notes=1):
            from ..client.precompute import make_share

            make_share()
        return
    if not words:
        _show(config, store, form)
        return
    folder, rest = folder_first(words, config, "precompute")
    count = _count(rest)
    with loading(1, notes=1, parties=sessions > 1) as phases:
        from ..client.client import client_settings
        from ..client.precompute import precompute as make
        from ..registry import compiled_for, served_with

        own, named = dealer == LOCAL, None if dealer == LOCAL else dealer
        given = {"server": server, "dealer": named, "certificates": certs, "folder": folder}
        given |= {"protocol": compiled_for(folder), "adapter": adapter, "store": store}
        settings = client_settings(config, served_with("dealer"), **given)
        phases.end("load")
        started = time.perf_counter()

        def step(phase: str, done: int, total: int) -> None:
            phases.step(phase, done, total)
            if phase == "precompute":
                phases.note(phase, f"{60 * done / (time.perf_counter() - started):.1f} a minute")

        report = make(settings, count, length, step, sessions, own)
    padded = f" of {report.length} tokens" if report.length else ""
    what = "runs, audits among them," if settings.session.audits else "queries"
    summary = f"kept correlations for {report.kept} {what}{padded} in {report.seconds:.1f} s"
    print_result(form, asdict(report), f"{summary}; {settings.client.store} holds {report.left}")
    if report.stopped is not None:
        print(f"blindformer: {report.stopped}", file=sys.stderr)
        raise Exit(1)


def _count(words: list[str]) -> int:
    if len(words) != 1 or not (words[0].isascii() and words[0].isdigit() and int(words[0])):
        given = " ".join(words) or "nothing"
        raise BlindformerError(f"precompute: {given}: is no number of queries; give one, 1 or more, after the folder")
    return int(words[0])


def _show(config: Path | None, store: Path | None, form: options.Form) -> None:
    """Correlations of a folder: ready, used, skipped because the other party has them no more, or broken."""
    from ..session.preprocessing_store import PreprocessingStore

    settings = load_settings(config, **{"client.store": store})
    folder = settings.client.store
    if folder is None:
        raise BlindformerError(
            "precompute: give a number of queries to prepare, or --store FOLDER to see what it holds"
        )
    database = settings.server.database if folder == settings.server.store else None  # of the servers that share it
    opened = PreprocessingStore(folder, database=database, must_exist=True)
    rows, used = opened.ledger.rows(), len(opened.ledger.audit())
    ready = sum(row.ready for row in rows)
    cells = [
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
    tables = [table(*headings, right=range(3, 8), rows=cells)] if rows else []
    result = {"folder": folder, "ready": ready, "noted": used, "sessions": [asdict(row) for row in rows]}
    print_result(form, result, *tables, f"{ready} ready; {used} uses noted, live ones among them")
