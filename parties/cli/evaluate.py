"""`blindformer evaluate DIR`: accuracy of a classifier in torch, in fixed point, and in private sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ..heap import keep_freed_memory
from . import options
from .output import console, emit, table
from .steps import listed, loading, read_plan


@options.grouped
def evaluate(
    *,
    models: Annotated[list[str], Argument(metavar="DIR...", help="Folders of classifiers, as distill writes.")],
    data: options.Data,
    protocol: Annotated[
        str, Option(help="torch, clear (fixed point), beaver, ckks ... (in private), with commas.")
    ] = "torch,clear",
    plan: Annotated[str | None, Option(help="A preset or a plan's file (default: the folder's plan.json).")] = None,
    teacher: Annotated[
        str | None, Option(help="What agreement is measured with (default: DIR/teacher, if there).")
    ] = None,
    private: Annotated[int, Option(min=1, help="Texts of the test set that go through private sessions.")] = 300,
    length: Annotated[int, Option(min=8, help="Tokens that texts are cut at, in every row.")] = 128,
    report: Annotated[Path | None, Option(help="Write a page (.html), or only the picture (.png).")] = None,
    seed: options.Seed = 0,
    columns: options.Columns,
    threads: options.Threads = 1,
    timeout: options.Timeout = 120,
    form: options.Form = "text",
) -> None:
    """Accuracy, F1, agreement with the teacher, and 95% intervals: in torch, in fixed point, and in private."""
    keep_freed_memory()
    with loading(threads, notes=1) as phases:
        from ...models.loading.load import load
        from ...protocols.errors import BlindformerError, writing
        from ..local.evaluation import evaluate as run
        from ..reports.figures import accuracy_figure, evaluation_page

        if report is not None and report.suffix not in (".html", ".png"):
            raise BlindformerError(f"{report}: a report is a page (.html) or a picture (.png); name it so")
        protocols = listed(protocol) or []
        chosen = None if plan is None else read_plan(plan, private=protocols != ["torch"])
        dataset = columns.read(data, seed)
        phases.end("load")
        found = []
        for name in models:
            loaded = load(name)
            own = loaded.folder / "teacher"
            given = teacher or (str(own) if own.is_dir() else None)
            found.append(
                run(
                    loaded,
                    dataset,
                    plan=chosen,
                    teacher=None if given is None else load(given),
                    protocols=protocols,
                    private=private,
                    longest=length,
                    seed=seed,
                    threads=threads,
                    timeout=timeout,
                    progress=phases.step,
                )
            )
    if form == "json":
        emit({"evaluations": [one.to_dict() for one in found]})
    else:
        for one in found:
            _show(one)
    if report is not None:  # last: what was found is not lost with it
        with writing(report, "choose another file"):
            if report.suffix == ".png":
                report.write_bytes(accuracy_figure(found))
            else:
                report.write_text(evaluation_page(found), encoding="utf-8")


def _show(found: Any) -> None:
    from ..reports.evaluation import HEADINGS, cells

    out = console()
    out.print(f"[bold]{found.model}[/]   plan {found.plan}   data {found.data}, seed {found.seed}: {found.tested}\n")
    out.print(table(*HEADINGS, right=(2, 3, 4), rows=map(cells, found.rows)))
    last = found.rows[-1]
    rows = [(name, *counts) for name, counts in zip(found.labels, last.confusion, strict=True)]
    matrix = table(f"{last.name}, {last.protocol}", *found.labels, right=range(1, len(found.labels) + 1), rows=rows)
    out.print("\ntrue class by row, answer by column")
    out.print(matrix)
    out.print(
        "\nIn brackets: 95% intervals, Wilson's for accuracy, a bootstrap's for F1. Agreement in percent."
        + (f" Private: {found.subset} {found.items}, stratified." if found.subset else "")
    )
