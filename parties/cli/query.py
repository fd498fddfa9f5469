"""`blindformer query DIR/client TEXT...`: ask a served model privately."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.markup import escape
from typer import Argument, Exit, Option

from ...errors import BlindformerError
from ...models.loading.truncation import IN_QUERIES, REPORTED
from ...versions import versions
from ..config import load_settings
from ..launch import LOCAL
from ..registry import compiled_for
from . import options
from .commands import Needs, Without
from .items import (
    InputItem,
    InputOptions,
    check_length,
    complain,
    folder_first,
    listed,
    names_model,
    note_columns,
    raise_if_all,
)
from .output import (
    SHOWN,
    answer_table,
    asked,
    console,
    cuts,
    finish_of,
    note_unfinished,
    print_json,
    print_result,
    row_of,
    similarities,
    table,
)
from .progress import Phases
from .steps import ReceiptOptions, cache_folder, check_new, compiling, loading


def answer_rows(
    phases: Phases, make: Callable[[], Any], inputs: InputOptions, out: Path, form: str, **settings: Any
) -> None:
    """Every row of a table, answered once. `settings`: of BulkJob. Errors: BlindformerError; Exit 1 if a row has no
    answer."""
    from ..bulk.job import BulkJob
    from ..session.messages import span

    files = inputs.file or []
    if len(files) != 1:
        raise BlindformerError(f"--out {out}: is for the answers to one --file; {len(files)} were given")

    def show(done: int, rows: int, rate: float) -> None:
        left = f", {span((rows - done) / rate)} left" if rate and done < rows else ""
        phases.note("query", f"{done:,} of {rows:,} rows, {rate:.1f} a second{left}")
        phases.step("query", done, rows)

    settings |= {"fields": listed(inputs.field) or (), "row_id": inputs.row_id, "encoding": inputs.encoding}
    job = BulkJob(files[0], out, make, progress=show, **settings)
    report = job.run()
    note_columns(files[0], inputs.field, inputs.encoding, job.trained)
    before = f", {report.resumed:,} of them before" if report.resumed else ""
    failed = f"; {report.failed:,} have an error in its place" if report.failed else ""
    canaries = "" if report.canaries is None else f"\nin this run {report.canaries}"
    facts = {} if report.canaries is None else {"canaries": report.canaries.facts()}
    speed = f"{report.per_second:.1f} a second, {span(report.seconds)}"
    summary = f"{out}: {report.rows:,} rows{before}, each once{failed}   {speed}{canaries}"
    print_result(form, {"out": out, **asdict(report), "per_second": report.per_second, **facts}, summary)
    if doubtful := bool(report.distrusted or (report.canaries and report.canaries.unlike)):
        print(
            f"blindformer: canaries: {report.distrusted:,} rows are beside a wrong canary answer: "
            "do not trust them (column `distrusted`)",
            file=sys.stderr,
        )
    if report.failed or doubtful:
        raise Exit(1)


def _write_known_answers(phases: Phases, client: Any, inputs: InputOptions, out: Path, form: str) -> None:
    """Each text of --file is asked three times at least, and 32 queries are asked for each length at least: they show
    how far honest answers are apart."""
    from ..client.canaries import make_known, write_known

    items = inputs.read(client.part.kind, [], client.part.about.get("columns"))
    for item in items:
        if item.error is not None:
            raise BlindformerError(f"{item.where}: {item.error}")
    phases.end("load")
    known = make_known(client, [item.value for item in items])
    try:
        write_known(out, known)
    except OSError as error:
        raise BlindformerError(f"--write-known {out}: cannot be written ({error.strerror})") from None
    lengths = {answer.length: answer.tolerance for answer in known}
    rows = ((number or "", name, f"{off:.2g}") for number, row in lengths.items() for name, off in row.items())
    result = {"out": out, "answers": len(known), "tolerance": lengths}
    summary = f"{out}: {len(known)} known answers to {len(items)} inputs"
    print_result(form, result, table("tokens", "output", "tolerance", right=(0, 2), rows=rows), summary)


NEXT_TOKENS = 5  # as models.loading.answers has it: help does not wait for torch


@options.grouped
def query(
    *,
    words: Annotated[
        list[str] | None,
        Argument(
            metavar="[FOLDER] [TEXT]...",
            help="The client's part of a compiled folder, or a model; then texts, files or `-`.",
        ),
    ] = None,
    inputs: InputOptions,
    protocol: options.Served = None,
    server: options.ServerOrLocal = None,
    deployment: options.DeploymentOptions,
    adapter: options.Adapter = None,
    length: Annotated[
        str,
        Option(help="Padded length (auto: the least compiled length that fits)."),
    ] = "auto",
    truncate: options.Truncate = "off",
    top: Annotated[
        int | None,
        Option(
            min=1,
            help="Labels, tokens or spans to show (default: all, 5, 1).",
        ),
        Without("--out"),
    ] = None,
    store: options.Store = None,
    keys: Annotated[
        Path | None,
        Option(help="Folder to keep secret keys in (default: new keys)."),
        Needs("--protocol ckks", "--config"),
        options.REMOTE,
    ] = None,
    vouched: ReceiptOptions,
    threads: options.OwnThreads = 1,
    out: Annotated[
        Path | None,
        Option(help="New table (.parquet, .csv, .tsv, .jsonl) for the answers to all rows (default: none)."),
        Needs("--file"),
    ] = None,
    sessions: Annotated[int, Option(min=1, max=1024, help="Sessions that query at once."), Needs("--out")] = 1,
    engine: Annotated[
        Literal["local", "ray"],
        Option(help="local: this process; ray: a cluster."),
        Needs("--out"),
    ] = "local",
    canaries: Annotated[
        float | None,
        Option(
            min=0.001,
            max=0.9,
            help="Fraction of canary queries (default: none).",
        ),
        Needs("--known"),
        Without("--engine ray"),
    ] = None,
    known: Annotated[
        Path | None,
        Option(help="Known answers of canary queries, from --write-known (default: none)."),
        Needs("--canaries"),
    ] = None,
    write_known: Annotated[
        Path | None,
        Option(help="New file for a trusted server's answers (default: none)."),
        Needs("--file"),
        Without("--out"),
    ] = None,
    any_ring: options.AnyRing = False,
    form: Annotated[
        Literal["text", "json", "jsonl"],
        Option("--format", help="text; json: one object; jsonl: one object a line, in order."),
    ] = "text",
) -> None:
    """Query a served model. Texts leave this machine only as shares or encrypted."""
    check_length(length, "auto")
    chosen = None if length == "auto" else int(length)
    if words and deployment.config is None and names_model(words[0]):
        if server != LOCAL:
            what = "there is no such folder; give the folder that compile wrote, or a model's name and --server local"
            raise BlindformerError(f"{words[0]}: {what}")
        inputs.check(words[1:])
        text = words[1:]
        few = truncate == "off" and bool(text) and "-" not in text and not inputs.file
        folder = _compiled(words[0], chosen, inputs, text, threads, few)
    else:
        folder, text = folder_first(words or [], deployment.config, "query")
        inputs.check(text)
    protocol = protocol or compiled_for(folder)
    chosen_protocol = load_settings(deployment.config, **{"session.protocol": protocol}).session.protocol
    if out is not None and vouched.receipt is not None:
        raise BlindformerError(f"--receipt {vouched.receipt}: is not for the rows of --out; leave one of them out")
    if write_known is not None:
        check_new("--write-known", write_known)
        if text:
            raise BlindformerError(f"--write-known {write_known}: is for the rows of --file; leave texts out")
    prices = vouched.read_prices(chosen_protocol, deployment.config)
    with loading(threads, parties=server == LOCAL) as phases:
        from ..client.base import check_top
        from ..client.canaries import CanaryError
        from ..client.result import Result

        phases.note("load", "the model's client part")
        opened = partial(
            command_client,
            chosen_protocol,
            server,
            folder=folder,
            adapter=adapter,
            length=chosen,
            truncate=None if truncate == "off" else truncate,
            store=store,
            keys=keys,
            any_ring=any_ring or None,
            canaries=None if canaries is None or known is None else (known, canaries),
            **deployment.session,
        )
        if out is not None:
            if text:
                raise BlindformerError(f"--out {out}: is for the rows of --file; leave texts out")
            phases.end("load")
            answer_rows(phases, opened, inputs, out, form, sessions=sessions, engine=engine)
            return
        with opened(progress=phases.step, hints={"layer": lambda layer: phases.note("online", layer)}) as client:
            if write_known is not None:
                _write_known_answers(phases, client, inputs, write_known, form)
                return
            check_top(client, top, "--top")
            items = inputs.read(client.part.kind, text, client.part.about.get("columns"))
            phases.end("load")
            unprinted = list(reversed(range(len(items)))) if form == "jsonl" else []
            results: dict[int, Result] = {}

            def take(index: int, result: Result) -> None:
                results[index] = result
                while unprinted and unprinted[-1] in results:
                    place = unprinted.pop()
                    print_json(row(client, items[place], results[place]))
                    sys.stdout.flush()

            _, broken = ask_items(client, items, top, take)
            answered = any(result.error is None for result in results.values())
            receipt = vouched.issue(client, prices) if broken is None else None
    if answered and form != "jsonl":
        (partial(_show, top or SHOWN) if form == "text" else _print_json)(
            client, [(item, results[index]) for index, item in enumerate(items)]
        )
    note_unfinished(list(results.values()))
    checked = client.canaries.report if client.canaries is not None else None
    if checked is not None and form == "jsonl":
        print_json({"canaries": checked.facts()})
    distrusted = checked is not None and bool(checked.unlike)
    if distrusted and not isinstance(broken, CanaryError):  # which says so
        print(f"blindformer: canaries: {checked}", file=sys.stderr)
    if broken is not None:
        raise broken
    errors = {index: result.error for index, result in results.items() if result.error is not None}
    if len(items) == 1:
        raise_if_all(items, errors)
    vouched.keep(receipt)
    if errors or distrusted:
        raise Exit(1)


def _compiled(model: str, length: int | None, inputs: InputOptions, words: list[str], threads: int, few: bool) -> Path:
    """The folder of a model that is compiled for this, or was before: for `length`, or for the one that a `few` texts
    need, so that their answers come soon; else for all lengths."""
    with loading(threads, notes=1) as phases:
        from ...models.building import default_lengths
        from ...models.data.dataset import columns_of
        from ...models.generation.folder import found_or_compiled_as_it_is, talks
        from ...models.loading.load import load, locate

        lengths, loaded = None if length is None else [length], None
        inputs.check_tables(columns_of(locate(model)[1]))
        if length is None and few and not talks(model):
            loaded = load(model)
            if loaded.task.medium is None and not loaded.task.writes:
                least = loaded.length_for([item.value for item in inputs.read(loaded.kind, words)], ways=IN_QUERIES)
                lengths = [next((usual for usual in default_lengths(loaded) if usual >= least), least)]
        phases.end("load")
        with compiling(phases) as progress:
            how: dict[str, Any] = {"lengths": lengths, "loaded": loaded, "within": True}
            return found_or_compiled_as_it_is(model, cache_folder(), progress=progress, **how)


def command_client(*words: Any, canaries: tuple[Path, float] | None = None, **options: Any) -> Any:
    """A client whose errors speak of a command's options. It has a name, for other processes to open it, too."""
    from ..registry import open_client

    client = open_client(*words, **options)
    client.ways = IN_QUERIES
    if canaries is not None:
        client.use_canaries(*canaries)
    return client


def ask_items(
    client: Any, items: Sequence[InputItem], top: int | None = None, take: Callable[[int, Any], None] | None = None
) -> tuple[dict[int, Any], BlindformerError | None]:
    """(the results by index, the error that ended them, if one did): then what has no answer has that error, unless
    nothing has an answer. `take`: called with each as it comes, first with those of items that could not be read. Each
    item of several without an answer is a line on stderr."""
    from ..client.result import Result

    results: dict[int, Any] = {}

    def keep(index: int, result: Any) -> None:
        results[index] = result
        if take is not None:
            take(index, result)

    def stream() -> Iterator[tuple[int, Any]]:
        yield from ((n, Result(item.value, error=item.error)) for n, item in enumerate(items) if item.error is not None)
        readable = [index for index, item in enumerate(items) if item.error is None]
        for place, result in client.stream([items[index].value for index in readable], top_k=top):
            yield readable[place], result

    try:
        for index, result in stream():
            keep(index, result)
            if result.error is not None and len(items) > 1:
                complain(items, index, result.error)
    except BlindformerError as error:
        if any(result.error is None for result in results.values()):  # what was answered before is good
            for index in set(range(len(items))) - results.keys():
                keep(index, Result(items[index].value, error=error))
        return results, error
    return results, None


def row(client: Any, item: InputItem, result: Any) -> dict[str, Any]:
    """For JSON: an input, its answer and its costs."""
    task, cut = client.task, {name: getattr(result, name) for name in REPORTED[client.truncate]}
    place = {**item.place, **asked(task, item.value), **({"length": result.length, **cut} if result.length else {})}
    retried = {"retried": result.retried} if result.retried and result.error is None else {}
    names = ("offline_s", "online_s", "offline_bytes", "online_bytes", "rounds") if result.report is not None else ()
    costs = {name: getattr(result.report, name) for name in names}
    distrusted = {"distrusted": result.distrusted} if result.distrusted else {}
    return {**place, **row_of(task, result), **finish_of(result), **retried, **distrusted, **costs}


def _print_json(client: Any, answered: list[tuple[InputItem, Any]]) -> None:
    part, task = client.part, client.task
    reports = [result.report for _, result in answered if result.report is not None]
    result = {
        "model": part.name,
        "task": task,
        "plan": part.about["plan"],
        "protocol": client.protocol,
        "results": [row(client, item, result) for item, result in answered],
        "setup_bytes": max(report.setup_bytes for report in reports),
        "learned": reports[-1].learned,
        "versions": versions(),
    }
    pairs = similarities(task, [result for _, result in answered])
    result |= {"similarities": pairs} if pairs else {}
    print_json({**result, "canaries": client.canaries.report.facts()} if client.canaries is not None else result)


def _show(labels: int, client: Any, answered: list[tuple[InputItem, Any]]) -> None:
    costs = client.costs([result.report for _, result in answered if result.report is not None])
    show_answers(client, setting_of(client, client.protocol, client.part.about["plan"]), answered, costs, labels)
    again = sum(bool(result.retried) for _, result in answered)
    if again:
        console().print(f"asked again in a new session: {again}")
    if client.canaries is not None:
        console().print(escape(str(client.canaries.report)))


def setting_of(client: Any, protocol: str, plan: str) -> str:
    """Who computed an answer, in a line. `protocol`: of its report, which names that of a private head, too."""
    return f"protocol {protocol}: {client.who}{f'   plan {plan}' if plan else ''}"


def show_answers(
    client: Any, setting: str, answered: Sequence[tuple[InputItem, Any]], costs: str, labels: int = SHOWN
) -> None:
    """Answers for a reader. `setting`: who computed them, in words; `costs`: of all of them."""
    from ...models.loading.media import word_of

    out, task = console(), client.task
    lengths = sorted({result.length for _, result in answered if result.error is None})
    padded = f", padded to {', '.join(map(str, lengths))} tokens" if lengths != [0] else ""
    out.print(f"{setting}\nmodel {client.part.name}   {word_of(task)}s {len(answered)}{padded}\n")
    rows = [result for _, result in answered]
    out.print(answer_table(task, rows, similarities(task, rows), labels, cuts(rows)))
    out.print(f"\n{costs}")
