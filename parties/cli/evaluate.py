"""`blindformer evaluate DIR`: accuracy of a classifier in torch, in fixed point, and in private sessions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .data_options import (
    DataFolderOption,
    DataOption,
    EncodingOption,
    LabelColumnOption,
    SeedOption,
    TextColumnOption,
    read_data,
)
from .output import (
    Format,
    FormatOption,
    Phases,
    ThreadsOption,
    TimeoutOption,
    console,
    emit,
    prepare,
    read_plan,
    table,
    use_threads,
)


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="DIR...", help="Folders of classifiers, as distill writes.")],
    data: DataOption,
    protocol: Annotated[
        str, typer.Option("--protocol", help="torch, clear (fixed point), beaver, ckks ... (in private), with commas.")
    ] = "torch,clear",
    plan: Annotated[
        str | None, typer.Option("--plan", help="A preset or a plan's file (default: the folder's plan.json).")
    ] = None,
    teacher: Annotated[
        str | None, typer.Option("--teacher", help="What agreement is measured with (default: DIR/teacher, if there).")
    ] = None,
    private: Annotated[
        int, typer.Option("--private", min=1, help="Texts of the test set that go through private sessions.")
    ] = 300,
    length: Annotated[int, typer.Option("--length", min=8, help="Tokens that texts are cut at, in every row.")] = 128,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a page (.html), or only the picture (.png).")
    ] = None,
    seed: SeedOption = 0,
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    encoding: EncodingOption = "utf-8",
    data_folder: DataFolderOption = None,
    threads: ThreadsOption = 1,
    timeout: TimeoutOption = 120,
    form: FormatOption = Format.text,
) -> None:
    """Accuracy, F1, agreement with the teacher, and 95% intervals: in torch, in fixed point, and in private."""
    prepare()
    with Phases() as phases:
        phases.begin("load")
        use_threads(threads)
        from ...models.loading.load import load
        from ...protocols.errors import BlindformerError, writing
        from ..local.evaluation import evaluate as run
        from ..reports.figures import accuracy_figure, evaluation_page

        if report is not None and report.suffix not in (".html", ".png"):
            raise BlindformerError(f"{report}: a report is a page (.html) or a picture (.png); name it so")
        protocols = [p.strip() for p in protocol.split(",") if p.strip()]
        chosen = None if plan is None else read_plan(plan, private=protocols != ["torch"])
        dataset = read_data(data, seed, data_folder, text_column, label_column, encoding)
        phases.end("load")
        found = []
        for name in models:
            loaded = load(name)
            own = loaded.folder / "teacher"
            given = teacher or (str(own) if own.is_dir() else None)
            options: dict[str, Any] = {"seed": seed, "threads": threads, "timeout": timeout, "progress": phases.step}
            found.append(
                run(
                    loaded,
                    dataset,
                    plan=chosen,
                    teacher=None if given is None else load(given),
                    protocols=protocols,
                    private=private,
                    longest=length,
                    **options,
                )
            )
    if form is Format.json:
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
    from ..reports.figures import HEADINGS, cells

    out = console()
    out.print(f"[bold]{found.model}[/]   plan {found.plan}   data {found.data}, seed {found.seed}: {found.tested}\n")
    rows = table(*HEADINGS, right=(2, 3, 4))
    for row in found.rows:
        rows.add_row(*cells(row))
    out.print(rows)
    last = found.rows[-1]
    matrix = table(f"{last.name}, {last.protocol}", *found.labels, right=tuple(range(1, len(found.labels) + 1)))
    for name, counts in zip(found.labels, last.confusion, strict=True):
        matrix.add_row(name, *map(str, counts))
    out.print("\ntrue class by row, answer by column")
    out.print(matrix)
    out.print(
        "\nIn brackets: 95% intervals, Wilson's for accuracy, a bootstrap's for F1. Agreement in percent."
        + (f" Private: {found.subset} {found.items}, stratified." if found.subset else "")
    )
