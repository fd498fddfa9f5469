"""`blindformer precompute DIR/client COUNT`: correlations for later queries, while nobody waits."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..heap import keep_freed_memory
from .items import folder_first
from .output import Format, FormatOption, Phases, console, emit, prepare, use_threads


def precompute(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[FOLDER] COUNT",
            help="The client's part of a compiled folder, DIR/client or DIR (with --config it may be left out); and "
            "for how many queries.",
        ),
    ],
    length: Annotated[
        int | None, typer.Option("--length", help="Of which compiled length (default: the only one).")
    ] = None,
    config: Annotated[Path | None, typer.Option("--config", help="The deployment's blindformer.toml.")] = None,
    spool: Annotated[Path | None, typer.Option("--spool", help="The folder to keep them in.")] = None,
    server: Annotated[str | None, typer.Option("--server", help="host:port.")] = None,
    dealer: Annotated[str | None, typer.Option("--dealer", help="host:port.")] = None,
    certs: Annotated[
        Path | None, typer.Option("--certs", help="The folder with ca.pem, client.pem and client.key.")
    ] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Where masked weights are kept.")] = None,
    wait: Annotated[
        float | None, typer.Option("--wait", min=0, help="Seconds to go on asking a server that is busy.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=1, help="Seconds that a party may be silent.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of this side.")] = 1,
    form: FormatOption = Format.text,
) -> None:
    """Make correlations ahead, which `blindformer query` then uses first: server and client keep a part each."""
    prepare()
    keep_freed_memory()
    folder, rest = folder_first(words, config, "precompute")
    count = _count(rest)
    with Phases() as phases:
        phases.begin("load")
        use_threads(threads)
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
    if form is Format.json:
        emit({**asdict(found), "stopped": None if found.stopped is None else str(found.stopped)})
    else:
        padded = f" of {found.length} tokens" if found.length else ""
        console().print(
            f"kept correlations for {found.kept} queries{padded} in {found.seconds:.1f} s; "
            f"{settings.client.spool} holds {found.left}"
        )
    if found.stopped is not None:
        print(f"blindformer: {found.stopped}", file=sys.stderr)
        raise typer.Exit(1)


def _count(words: list[str]) -> int:
    from ...protocols.errors import BlindformerError

    if len(words) != 1 or not (words[0].isascii() and words[0].isdigit() and int(words[0])):
        said = " ".join(words) or "nothing"
        raise BlindformerError(f"precompute: {said}: is no number of queries; give one, 1 or more, after the folder")
    return int(words[0])
