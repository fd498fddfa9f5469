"""`blindformer serve`: the server, for many clients at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..heap import keep_freed_memory
from .output import ServedOption, prepare
from .service_options import Given, service_command, show


@service_command
def server(
    given: Given,
    folder: Annotated[Path | None, typer.Argument(help="The server's part of a compiled folder.")] = None,
    protocol: ServedOption = None,
    dealer: Annotated[str | None, typer.Option("--dealer", help="HOST:PORT of the dealer.")] = None,
    topology: Annotated[
        str | None, typer.Option("--topology", help="dealer, or helper: a second server takes the client's seat.")
    ] = None,
    spool: Annotated[Path | None, typer.Option("--spool", help="Keep correlations made ahead in this folder.")] = None,
    queries_each: Annotated[
        int | None, typer.Option("--queries-each", help="Texts that one certificate's name may ask in a period.")
    ] = None,
    queries_period: Annotated[
        float | None, typer.Option("--queries-period", help="The period, in seconds (default: a day).")
    ] = None,
    state: Annotated[Path | None, typer.Option("--state", help="Count them in this folder, over restarts.")] = None,
    keys_gb: Annotated[
        float | None, typer.Option("--keys-gb", help="ckks: what clients' evaluation keys may take on disk.")
    ] = None,
    keys_memory_gb: Annotated[
        float | None, typer.Option("--keys-memory-gb", help="ckks: what they may take in a worker's memory.")
    ] = None,
    keys_seconds: Annotated[
        float | None, typer.Option("--keys-seconds", help="ckks: seconds of no use after which keys are gone.")
    ] = None,
    weights_memory_gb: Annotated[
        float | None, typer.Option("--weights-memory-gb", help="ckks: what encoded weights may take there.")
    ] = None,
    query_processes: Annotated[
        int | None, typer.Option("--query-processes", help="ckks: processes that share one query (default: 1).")
    ] = None,
    any_ring: Annotated[bool, typer.Option("--any-ring", hidden=True, help="FOR TESTS: below 128 bits.")] = False,
) -> None:
    """Serve a compiled model to many clients at once, until Ctrl-C or SIGTERM; SIGHUP reads the certificates again."""
    prepare()
    keep_freed_memory()
    from ..config import load_settings
    from ..registry import find_served, resolve

    flags = given.flags(
        folder=folder, spool=spool, keys_gb=keys_gb, keys_memory_gb=keys_memory_gb, keys_seconds=keys_seconds,
        weights_memory_gb=weights_memory_gb, query_processes=query_processes, queries_each=queries_each,
        queries_period=queries_period, state=state,
    )  # fmt: skip
    shared = {
        "session.protocol": protocol,
        "session.topology": topology,
        "parties.dealer.address": dealer,
    }
    settings = load_settings(given.config, **shared, **flags)
    options: dict[str, Any] = {"more": ["--any-ring"]} if any_ring else {}
    resolve(find_served(settings.session.protocol).service)(
        settings, show if settings.server.log_format == "text" else None, given.lifeline, **options
    )
