"""`blindformer precompute DIR/client COUNT`: correlations for later queries, while nobody waits."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from typer import Argument, Exit, Option

from . import options
from .items import folder_first
from .output import console, emit
from .steps import loading, prepare


def precompute(
    words: Annotated[
        list[str],
        Argument(
            metavar="[FOLDER] COUNT",
            help="The client's part of a compiled folder, DIR/client or DIR (with --config it may be left out); and "
            "for how many queries.",
        ),
    ],
    length: Annotated[int | None, Option(help="Of which compiled length (default: the only one).")] = None,
    config: options.Config = None,
    spool: Annotated[Path | None, Option(help="The folder to keep them in.")] = None,
    server: Annotated[str | None, Option(help="host:port.")] = None,
    dealer: options.ClientDealer = None,
    certs: options.ClientCerts = None,
    cache: options.Cache = None,
    wait: options.Wait = None,
    timeout: options.ClientTimeout = None,
    threads: options.OwnThreads = 1,
    form: options.Form = "text",
) -> None:
    """Make correlations ahead, which `blindformer query` then uses first: server and client keep a part each."""
    prepare()
    folder, rest = folder_first(words, config, "precompute")
    count = _count(rest)
    with loading(threads, notes=1) as phases:
        from ..client.precompute import precompute as make
        from ..config import load_settings
        from ..registry import served_with

        settings = load_settings(
            config,
            served_with("dealer"),
            **{
                "parties.server.address": server,
                "parties.dealer.address": dealer,
                "session.timeout": timeout,
                "certificates.folder": certs,
                "client.folder": folder,
                "client.cache": cache,
                "client.spool": spool,
                "client.wait": wait,
            },
        )
        phases.end("load")
        found = make(settings, count, length, phases.step)
    if form == "json":
        emit(asdict(found))
    else:
        padded = f" of {found.length} tokens" if found.length else ""
        console().print(
            f"kept correlations for {found.kept} queries{padded} in {found.seconds:.1f} s; "
            f"{settings.client.spool} holds {found.left}"
        )
    if found.stopped is not None:
        print(f"blindformer: {found.stopped}", file=sys.stderr)
        raise Exit(1)


def _count(words: list[str]) -> int:
    from ...protocols.errors import BlindformerError

    if len(words) != 1 or not (words[0].isascii() and words[0].isdigit() and int(words[0])):
        said = " ".join(words) or "nothing"
        raise BlindformerError(f"precompute: {said}: is no number of queries; give one, 1 or more, after the folder")
    return int(words[0])
