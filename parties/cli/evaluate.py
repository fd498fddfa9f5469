"""`blindformer evaluate DIR`: how good a classifier or a language model is in torch, in fixed point, and in private."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ...errors import BlindformerError
from . import options
from .output import console, table, tell
from .steps import listed, loading, read_plan, read_system, read_whole, refuse

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.loading.load import Loaded


@options.grouped
def evaluate(
    *,
    models: Annotated[
        list[str], Argument(metavar="DIR...", help="Folders of classifiers, as distill writes; or language models.")
    ],
    data: Annotated[
        str | None,
        Option(help="A classifier's examples: a data set's name, a CSV, TSV or JSON-lines file, or a folder of them."),
    ] = None,
    text: Annotated[
        Path | None, Option(help="A language model's text: a file, of which each next token is judged.")
    ] = None,
    protocol: Annotated[
        str, Option(help="torch, clear (fixed point), beaver, ckks ... (in private), with commas.")
    ] = "torch,clear",
    plan: Annotated[str | None, Option(help="A preset or a plan's file (default: the folder's plan.json).")] = None,
    teacher: Annotated[
        str | None, Option(help="What agreement is measured with (default: DIR/teacher, if there).")
    ] = None,
    private: Annotated[
        int, Option(min=1, help="Texts of the test set, or tokens, that go through private sessions.")
    ] = 300,
    length: Annotated[
        int | None, Option(min=8, help="With --data: tokens that texts are cut at, in every row (default: 128).")
    ] = None,
    tokens: Annotated[
        int | None, Option(min=32, help="With --text: tokens of a window, as of a conversation (default: 256).")
    ] = None,
    window: options.Window = None,
    system: Annotated[
        Path | None, Option(help="With --text: the system prompt that begins each window, a file.")
    ] = None,
    report: Annotated[Path | None, Option(help="Write a page (.html), or only the picture (.png).")] = None,
    seed: options.Seed = 0,
    columns: options.Columns,
    threads: options.Threads = 1,
    timeout: options.Timeout = 120,
    form: options.Form = "text",
) -> None:
    """Judge in torch, in fixed point and in private: a classifier on --data, a language model on --text.

    Classifiers: accuracy, F1, agreement with the teacher, and 95% intervals. Language models: perplexity, and how far
    the next tokens are from float32's.
    """
    of_data = {"--teacher": teacher, "--length": length, "--report": report, "--text-column": columns.text_column,
               "--label-column": columns.label_column, "--data-folder": columns.data_folder}  # fmt: skip
    if (data is None) == (text is None):
        raise BlindformerError("evaluate: give --data to judge a classifier, or --text to judge a language model")
    if data is None:
        refuse(of_data, "belongs to --data, which is not given; leave it out")
    else:
        of_text = {"--tokens": tokens, "--window": window, "--system": system}
        refuse(of_text, "belongs to --text, which is not given; leave it out")
    if report is not None and report.suffix not in (".html", ".png"):
        raise BlindformerError(f"{report}: a report is a page (.html) or a picture (.png); name it so")
    with loading(threads, notes=1) as phases:
        from ...models.loading.load import load

        protocols = listed(protocol) or []
        chosen = None if plan is None else read_plan(plan, private=protocols != ["torch"])
        common: dict[str, Any] = {"plan": chosen, "protocols": protocols, "private": private, "timeout": timeout}
        common["progress"] = phases.step
        found: list[Any]
        if text is not None:
            from ..local.text_evaluation import evaluate_text

            said = None if system is None else read_system(system)
            words = read_whole("--text", text, columns.encoding)
            common |= {"title": str(text), "system": said, "window": window, **({"tokens": tokens} if tokens else {})}
            common["compiling"] = phases.of("compile")
            phases.end("load")
            found = [evaluate_text(load(name), words, **common) for name in models]
        else:
            dataset = columns.read(data or "", seed)
            common |= {"longest": length or 128, "seed": seed, "threads": threads}
            phases.end("load")
            found = [_of_data(load(name), dataset, teacher, common) for name in models]
    shown = [partial(_show if text is None else _show_text, one) for one in found]
    tell(form, {"evaluations": [one.to_dict() for one in found]}, *shown)
    if report is not None:  # last: what was found is not lost with it
        from ...protocols.errors import writing
        from ..reports.figures import accuracy_figure, evaluation_page

        with writing(report, "choose another file"):
            if report.suffix == ".png":
                report.write_bytes(accuracy_figure(found))
            else:
                report.write_text(evaluation_page(found), encoding="utf-8")


def _of_data(loaded: Loaded, dataset: Any, teacher: str | None, common: dict[str, Any]) -> Any:
    from ...models.loading.load import load
    from ..local.evaluation import evaluate as run

    own = loaded.folder / "teacher"
    given = teacher or (str(own) if own.is_dir() else None)
    return run(loaded, dataset, teacher=None if given is None else load(given), **common)


def _show_text(found: Any) -> None:
    from ..reports.evaluation import TEXT_HEADINGS, text_cells

    out = console()
    plan = f"   plan {found.plan}" if found.plan else ""
    out.print(f"[bold]{found.model}[/]{plan}   text {found.text}: {found.tokens} tokens\n")
    out.print(table(*TEXT_HEADINGS, right=(2, 3, 7), rows=map(text_cells, found.rows)))
    out.print(
        f"\nRead in {found.windows} windows of {found.window} tokens, each after the {found.prefix} that begin every "
        "conversation.\nPerplexity: exp of the mean loss of the text's next tokens; beside it, float32's at the same "
        "places.\nLikeliest token: how often it is the same, in percent. KL: mean divergence from float32, in nats."
        + (
            f"\nEach token reads the prefix, itself and the {found.attended - 1} just before it."
            if found.attended
            else ""
        )
        + (f"\nPrivate: the first {found.subset} tokens." if found.subset else "")
    )


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
