"""`blindformer query DIR/client TEXT...`: ask a model that is served elsewhere, and that never sees the question."""

from __future__ import annotations

import enum
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..heap import keep_freed_memory
from .answers import answer_table, as_json, asked, in_words, similarities
from .items import FieldOption, FileOption, InputItem, complain, folder_first, paired, raise_if_all, read_items
from .output import PairOption, Phases, ServedOption, console, emit, prepare, use_threads

PAIRS_OF = 12  # of more texts than this, cosines are for programs


class OutputForm(enum.StrEnum):
    text = "text"
    json = "json"
    jsonl = "jsonl"


class Topology(enum.StrEnum):
    dealer = "dealer"
    helper = "helper"


class FromSpool(enum.StrEnum):
    auto = "auto"
    only = "only"
    off = "off"


def query(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FOLDER] [TEXT]...",
            help="The client's part of a compiled folder, DIR/client or DIR (with --config it may be left out). Texts, "
            "or images' files; `-`: standard input, one text a line (also if there are none).",
        ),
    ] = None,
    file: FileOption = None,
    field: FieldOption = None,
    pair: PairOption = None,
    protocol: ServedOption = None,
    config: Annotated[Path | None, typer.Option("--config", help="The deployment's blindformer.toml.")] = None,
    server: Annotated[
        str | None,
        typer.Option("--server", help="host:port; or local: server and dealer on this machine, for now."),
    ] = None,
    dealer: Annotated[str | None, typer.Option("--dealer", help="host:port.")] = None,
    helper: Annotated[str | None, typer.Option("--helper", help="host:port, with --topology helper.")] = None,
    topology: Annotated[
        Topology | None,
        typer.Option("--topology", help="dealer; or helper: a second server computes, this side splits its data."),
    ] = None,
    certs: Annotated[
        Path | None, typer.Option("--certs", help="The folder with ca.pem, client.pem and client.key.")
    ] = None,
    length: Annotated[
        str, typer.Option("--length", help="auto: the least compiled length that fits, for each text; or a number.")
    ] = "auto",
    top: Annotated[int | None, typer.Option("--top", min=1, help="How many labels or tokens (default: 5).")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Where masked weights are kept.")] = None,
    spool: Annotated[Path | None, typer.Option("--spool", help="Where correlations made ahead are kept.")] = None,
    use_spool: Annotated[
        FromSpool | None,
        typer.Option("--use-spool", help="auto: correlations made ahead first; only those; off: live ones."),
    ] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="ckks: keep secret keys here, so that evaluation keys travel once.")
    ] = None,
    wait: Annotated[
        float | None, typer.Option("--wait", min=0, help="Seconds to go on asking a server that is busy.")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=1, help="Seconds that a party may be silent.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads of this side.")] = 1,
    any_ring: Annotated[bool, typer.Option("--any-ring", hidden=True, help="FOR TESTS: below 128 bits.")] = False,
    form: Annotated[
        OutputForm,
        typer.Option("--format", help="text; json: one object; jsonl: one object a line, each when it is there."),
    ] = OutputForm.text,
) -> None:
    """Ask a served model. Texts leave this machine as shares alone; only here the answer is put together."""
    prepare()
    keep_freed_memory()
    chosen, (folder, text) = _number(length), folder_first(words or [], config, "query")
    broken: Exception | None = None
    with Phases() as phases:
        phases.begin("load", 2)
        phases.note("load", "libraries")
        use_threads(threads)
        from ...protocols.errors import BlindformerError
        from ..client.base import Result
        from ..config import load_settings
        from ..registry import open_client

        phases.note("load", "the model's client part")
        with open_client(
            load_settings(config, **{"session.protocol": protocol}).session.protocol,
            server,
            {"layer": lambda layer: phases.note("online", layer)},
            dealer=dealer,
            helper=helper,
            folder=folder,
            certificates=certs,
            config=config,
            topology=None if topology is None else topology.value,
            length=chosen,
            timeout=timeout,
            wait=wait,
            cache=cache,
            spool=spool,
            use_spool=None if use_spool is None else use_spool.value,
            keys=keys,
            any_ring=any_ring or None,
            progress=phases.step,
        ) as client:
            items = paired(read_items(client.part.kind == "image", text, file or [], field), pair or [])
            phases.end("load")
            results: dict[int, Any] = {}

            def take(index: int, result: Any) -> None:
                results[index] = result
                if form is OutputForm.jsonl:
                    emit({**_row(client.task, items[index], result), **_costs(result)})
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
    if answered and form is not OutputForm.jsonl:
        (_show if form is OutputForm.text else _emit)(
            client, [(item, results[index]) for index, item in enumerate(items)]
        )
    if broken is not None:
        raise broken
    errors = {index: result.error for index, result in results.items() if result.error is not None}
    if len(items) == 1:
        raise_if_all(items, errors)
    if errors:
        raise typer.Exit(1)


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
    from ...protocols.errors import BlindformerError

    if length == "auto":
        return None
    if not (length.isascii() and length.isdigit()):
        raise BlindformerError(f"--length {length}: give auto, or one of the compiled lengths")
    return int(length)


def _row(task: str, item: InputItem, result: Any) -> dict[str, Any]:
    row = {**item.place, **asked(task, item.value)}
    if result.length:
        row["length"] = result.length
    if result.error is not None:
        return {**row, "error": str(result.error)}
    return {**row, **as_json(task, result.value), **({"retried": result.retried} if result.retried else {})}


def _costs(result: Any) -> dict[str, Any]:
    report = result.report
    if report is None:
        return {}
    names = ("offline_s", "online_s", "offline_bytes", "online_bytes", "rounds")
    return {name: getattr(report, name) for name in names}


def _emit(client: Any, answered: list[tuple[InputItem, Any]]) -> None:
    from ...versions import versions

    part, task = client.part, client.task
    reports = [result.report for _, result in answered if result.report is not None]
    found = {
        "model": part.name,
        "task": task,
        "plan": part.about["plan"],
        "protocol": client.protocol,
        "results": [{**_row(task, item, result), **_costs(result)} for item, result in answered],
        "setup_bytes": max(report.setup_bytes for report in reports),
        "learned": reports[-1].learned,
        "versions": versions(),
    }
    pairs = _pairs(task, answered)
    emit({**found, "similarities": pairs} if pairs else found)


def _pairs(task: str, answered: list[tuple[InputItem, Any]]) -> list[dict[str, Any]]:
    good = [result for _, result in answered if result.error is None]
    if task != "sentence-embedding" or not 1 < len(good) <= PAIRS_OF:
        return []
    return similarities([result.item for result in good], [result.value for result in good])


def _show(client: Any, answered: list[tuple[InputItem, Any]]) -> None:
    out, part, task = console(), client.part, client.task
    out.print(f"protocol {client.protocol}: {client.who}   plan {part.about['plan']}")
    lengths = sorted({result.length for _, result in answered if result.error is None})
    padded = f", padded to {', '.join(map(str, lengths))} tokens" if lengths != [0] else ""
    out.print(f"model {part.name}   {'images' if lengths == [0] else 'texts'} {len(answered)}{padded}\n")
    words = [
        (result.item, in_words(task, result.value) if result.error is None else "no answer") for _, result in answered
    ]
    out.print(answer_table(task, words, _pairs(task, answered)))
    reports = [result.report for _, result in answered if result.report is not None]
    out.print(f"\n{client.costs(reports)}")
    again = sum(bool(result.retried) for _, result in answered)
    if again:
        out.print(f"asked again in a new session: {again}")
