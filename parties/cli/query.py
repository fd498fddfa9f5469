"""`blindformer query DIR/client TEXT...`: ask a model that is served elsewhere, and that never sees the question."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option

from ...errors import BlindformerError
from ...models.loading.truncation import IN_COMMANDS
from ...versions import versions
from ..launch import LOCAL
from . import options
from .answers import answer_table, asked, cuts, row_of, similarities
from .bulk import answer_rows
from .items import InputItem, complain, folder_first, paired, raise_if_all, read_items
from .output import console, emit
from .steps import listed, loading

PAIRS_OF = 12  # of more texts than this, cosines are for programs


def query(
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="[FOLDER] [TEXT]...",
            help="The client's part of a compiled folder, DIR/client or DIR (with --config it may be left out). Texts, "
            "or images' files; `-`: standard input, one text a line (also if there are none).",
        ),
    ] = None,
    file: options.Files = None,
    field: options.Field = None,
    row_id: options.RowId = None,
    encoding: options.Encoding = None,
    pair: options.Pairs = None,
    protocol: options.Served = None,
    config: options.Config = None,
    server: Annotated[
        str | None, Option(help="host:port; or local: server and dealer on this machine, for now.")
    ] = None,
    dealer: options.ClientDealer = None,
    helper: options.Helper = None,
    topology: options.Topology = None,
    certs: options.ClientCerts = None,
    length: Annotated[
        str, Option(help="auto: the least compiled length that fits, for each text; or a number.")
    ] = "auto",
    truncate: options.Truncate = "off",
    top: Annotated[int | None, Option(min=1, help="How many labels or tokens (default: 5).")] = None,
    cache: options.Cache = None,
    spool: Annotated[Path | None, Option(help="Where correlations made ahead are kept.")] = None,
    use_spool: Annotated[
        str | None,
        Option(
            **options.one_of("auto", "only", "off"),
            help="auto: correlations made ahead first; only those; off: live ones.",
        ),
    ] = None,
    keys: Annotated[
        Path | None, Option(help="ckks: keep secret keys here, so that evaluation keys travel once.")
    ] = None,
    wait: options.Wait = None,
    timeout: options.ClientTimeout = None,
    threads: options.OwnThreads = 1,
    out: Annotated[
        Path | None, Option(help="Answer every row of a table into this one: .parquet, .csv, .tsv or .jsonl.")
    ] = None,
    sessions: Annotated[int, Option(min=1, max=1024, help="With --out: sessions at once.")] = 1,
    engine: Annotated[
        str, Option(**options.one_of("local", "ray"), help="With --out: who asks; ray: a cluster's processes.")
    ] = "local",
    any_ring: options.AnyRing = False,
    form: Annotated[
        str,
        Option(
            "--format",
            **options.one_of("text", "json", "jsonl"),
            help="text; json: one object; jsonl: one object a line, each when it is there.",
        ),
    ] = "text",
) -> None:
    """Ask a served model. Texts leave this machine as shares alone; only here the answer is put together."""
    chosen, (folder, text) = _number(length), folder_first(words or [], config, "query")
    fields = listed(field)
    broken: Exception | None = None
    with loading(threads, parties=server == LOCAL) as phases:
        from ..client.base import Result
        from ..config import load_settings

        phases.note("load", "the model's client part")
        opened = partial(
            _opened,
            load_settings(config, **{"session.protocol": protocol}).session.protocol,
            server,
            dealer=dealer,
            helper=helper,
            folder=folder,
            certificates=certs,
            config=config,
            topology=topology,
            length=chosen,
            truncate=None if truncate == "off" else truncate,
            timeout=timeout,
            wait=wait,
            cache=cache,
            spool=spool,
            use_spool=use_spool,
            keys=keys,
            any_ring=any_ring or None,
        )
        if out is not None:
            if text or pair:
                raise BlindformerError(f"--out {out}: is for the rows of --file; leave texts and --pair out")
            phases.end("load")
            rows: dict[str, Any] = {"fields": fields or (), "row_id": row_id, "encoding": encoding}
            answer_rows(phases, opened, file or [], out, form, sessions=sessions, engine=engine, **rows)
            return
        with opened(progress=phases.step, hints={"layer": lambda layer: phases.note("online", layer)}) as client:
            items = read_items(client.part.kind, text, file or [], fields, row_id, encoding)
            items = paired(items, pair or [])
            phases.end("load")
            results: dict[int, Any] = {}

            def take(index: int, result: Any) -> None:
                results[index] = result
                if form == "jsonl":
                    emit({**_row(client, items[index], result), **_costs(result)})
                    sys.stdout.flush()

            try:
                for index, result in _results(client, items, top):
                    take(index, result)
                    if result.error is not None and len(items) > 1:
                        complain(items, index, result.error)
            except BlindformerError as error:
                broken = error
            answered = any(result.error is None for result in results.values())
            if broken is not None and answered:  # what was answered before is good
                for index in set(range(len(items))) - results.keys():
                    take(index, Result(items[index].value, error=broken))
    if answered and form != "jsonl":
        (_show if form == "text" else _emit)(client, [(item, results[index]) for index, item in enumerate(items)])
    if broken is not None:
        raise broken
    errors = {index: result.error for index, result in results.items() if result.error is not None}
    if len(items) == 1:
        raise_if_all(items, errors)
    if errors:
        raise Exit(1)


def _opened(*words: Any, **options: Any) -> Any:
    """A client whose errors speak of this command's options. It has a name, for other processes to open it, too."""
    from ..registry import open_client

    client = open_client(*words, **options)
    client.ways = IN_COMMANDS
    return client


def _results(client: Any, items: list[InputItem], top: int | None) -> Iterator[tuple[int, Any]]:
    """(index of the item, its result), as they come: first of those that could not even be read."""
    from ..client.base import Result

    for index, item in enumerate(items):
        if item.error is not None:
            yield index, Result(item.value, error=item.error)
    readable = [index for index, item in enumerate(items) if item.error is None]
    for place, result in client.stream([items[index].value for index in readable], top_k=top):
        yield readable[place], result


def _number(length: str) -> int | None:
    if length == "auto":
        return None
    if not (length.isascii() and length.isdigit()):
        raise BlindformerError(f"--length {length}: give auto, or one of the compiled lengths")
    return int(length)


def _row(client: Any, item: InputItem, result: Any) -> dict[str, Any]:
    task, cut = client.task, {"truncated": result.truncated} if client.truncate != "off" else {}
    row = {**item.place, **asked(task, item.value), **({"length": result.length, **cut} if result.length else {})}
    retried = {"retried": result.retried} if result.retried and result.error is None else {}
    return {**row, **row_of(task, result), **retried}


def _costs(result: Any) -> dict[str, Any]:
    report = result.report
    if report is None:
        return {}
    names = ("offline_s", "online_s", "offline_bytes", "online_bytes", "rounds")
    return {name: getattr(report, name) for name in names}


def _emit(client: Any, answered: list[tuple[InputItem, Any]]) -> None:
    part, task = client.part, client.task
    reports = [result.report for _, result in answered if result.report is not None]
    found = {
        "model": part.name,
        "task": task,
        "plan": part.about["plan"],
        "protocol": client.protocol,
        "results": [{**_row(client, item, result), **_costs(result)} for item, result in answered],
        "setup_bytes": max(report.setup_bytes for report in reports),
        "learned": reports[-1].learned,
        "versions": versions(),
    }
    pairs = similarities(task, [result for _, result in answered], PAIRS_OF)
    emit({**found, "similarities": pairs} if pairs else found)


def _show(client: Any, answered: list[tuple[InputItem, Any]]) -> None:
    from ...models.loading.media import word_of

    out, part, task = console(), client.part, client.task
    out.print(f"protocol {client.protocol}: {client.who}   plan {part.about['plan']}")
    lengths = sorted({result.length for _, result in answered if result.error is None})
    padded = f", padded to {', '.join(map(str, lengths))} tokens" if lengths != [0] else ""
    out.print(f"model {part.name}   {word_of(part.task.pipeline)}s {len(answered)}{padded}\n")
    rows = [result for _, result in answered]
    out.print(answer_table(task, rows, similarities(task, rows, PAIRS_OF), cuts(rows)))
    reports = [result.report for _, result in answered if result.report is not None]
    out.print(f"\n{client.costs(reports)}")
    again = sum(bool(result.retried) for _, result in answered)
    if again:
        out.print(f"asked again in a new session: {again}")
