"""`blindformer sentinels make DIR`: answers that are known, to mix among real queries later."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ...errors import BlindformerError
from ..config import load_settings
from ..launch import LOCAL
from . import options
from .commands import CheckedCommand, example
from .items import InputOptions
from .output import print_result, table
from .query import command_client
from .steps import check_new, loading

app = typer.Typer(help="Queries with known answers, which find a server that gives others.", no_args_is_help=True)


@app.command(cls=CheckedCommand, epilog=example("sentinels make compiled --file texts.txt --out known.json"))
@options.grouped
def make(
    *,
    folder: Annotated[
        Path,
        Argument(
            help="The compiled folder, or the client's part of it; for --server local with the server's beside it."
        ),
    ],
    file: options.Files,
    out: Annotated[Path, Option(help="The file of known answers to write, for `blindformer query --known`.")],
    field: options.Field = None,
    encoding: options.Encoding = None,
    protocol: options.Served = None,
    server: Annotated[
        str, Option(help="HOST:PORT of a server that is trusted; or local: a server and a dealer on this machine.")
    ] = LOCAL,
    deployment: options.TextOptions,
    adapter: options.Adapter = None,
    length: Annotated[
        int | None, Option(help="The compiled length to ask at (default: each that a text fits).")
    ] = None,
    cache: options.Cache = None,
    threads: options.OwnThreads = 1,
    any_ring: options.AnyRing = False,
    form: options.Form = "text",
) -> None:
    """Ask a server that is trusted, or one of this machine, for answers to mix among real queries later. Each text is
    asked three times at least, and 32 queries are asked for each length at least: they show how far honest answers are
    apart."""
    inputs = InputOptions(file=file, field=field, encoding=encoding)
    inputs.check([])
    check_new("--out", out)
    if not folder.is_dir():
        raise BlindformerError(f"{folder}: there is no such folder; give the one that compile wrote")
    with loading(threads, parties=server == LOCAL) as phases:
        from ..client.known_answers import make_known, write_known

        phases.note("load", "the model's client part")
        protocol = load_settings(deployment.config, **{"session.protocol": protocol}).session.protocol
        given = {"folder": folder, "adapter": adapter, "length": length, "cache": cache, "any_ring": any_ring or None}
        with command_client(protocol, server, progress=phases.step, **given, **deployment.session) as client:
            items = inputs.read(client.part.kind, [])
            for item in items:
                if item.error is not None:
                    raise BlindformerError(f"{item.where}: {item.error}")
            phases.end("load")
            known = make_known(client, [item.value for item in items])
        try:
            write_known(out, known)
        except OSError as error:
            raise BlindformerError(f"--out {out}: cannot be written ({error.strerror})") from None
    lengths = {answer.length: answer.tolerance for answer in known}
    rows = ((number or "", name, f"{off:.2g}") for number, row in lengths.items() for name, off in row.items())
    result = {"out": out, "answers": len(known), "tolerance": lengths}
    summary = f"{out}: {len(known)} known answers to {len(items)} inputs"
    print_result(form, result, table("tokens", "output", "tolerance", right=(0, 2), rows=rows), summary)
