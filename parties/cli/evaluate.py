"""`blindformer evaluate DIR`: how good a classifier or a language model is in torch, in fixed point, and in private."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ...errors import BlindformerError
from ..registry import sessions
from . import options
from .commands import Needs
from .items import listed
from .output import console, print_result, table
from .steps import check_there, loading, read_plan, read_system, refuse

if TYPE_CHECKING:  # importing it takes seconds
    from ...models.loading.load import Loaded

OF_DATA, OF_TEXT = Needs("--data"), Needs("--text")


@options.grouped
def evaluate(
    *,
    models: Annotated[
        list[str],
        Argument(metavar="DIR...", help="Folders of classifiers, as distill writes; or language models."),
        options.NAMES_MODEL,
    ],
    data: Annotated[
        str | None,
        Option(help="A classifier's examples: a data set's name, a table, or a folder (default: none)."),
    ] = None,
    text: Annotated[
        Path | None, Option(help="A file with a text, on whose next tokens a language model is judged (default: none).")
    ] = None,
    protocol: Annotated[
        str,
        Option(help="How to run it, with commas: torch, clear (fixed point), beaver, ckks, crypten, delegated."),
    ] = "torch,clear",
    plan: Annotated[
        str | None, Option(help="A preset or a plan's JSON file (default: the folder's plan.json).")
    ] = None,
    teacher: Annotated[
        str | None,
        Option(help="Model to measure agreement with (default: DIR/teacher, else this model in float32)."),
        OF_DATA,
        options.NAMES_MODEL,
    ] = None,
    private: Annotated[
        int,
        Option(min=1, help="Private texts or tokens."),
        Needs(*(f"--protocol {name}" for name in sessions())),
    ] = 300,
    length: Annotated[
        int | None, Option(min=8, help="Tokens that longer texts are cut at, in every row (default: 128)."), OF_DATA
    ] = None,
    tokens: Annotated[
        int | None, Option(min=32, help="Tokens of a window of the text, as of a conversation (default: 256)."), OF_TEXT
    ] = None,
    window: Annotated[options.Window, OF_TEXT] = None,
    system: Annotated[
        Path | None,
        Option(help="A file with the system prompt that begins each window (default: the model's own)."),
        OF_TEXT,
    ] = None,
    seed: Annotated[options.TrainedSeed, OF_DATA] = None,
    columns: options.Columns,
    threads: options.Threads = 1,
    form: options.Form = "text",
) -> None:
    """Evaluate in torch, in fixed point and privately: a classifier on --data, a language model on --text.

    Classifiers: accuracy, F1, agreement with the teacher, with 95% intervals. Language models: perplexity.
    """
    if (data is None) == (text is None):
        raise BlindformerError("evaluate: give --data to judge a classifier, or --text to judge a language model")
    if data is None:
        of_data = {name: getattr(columns, name) for name in ("text_column", "label_column")}
        refuse(of_data, "needs --data; add it, or leave this out")
    check_there("--text", text)
    check_there("--system", system)
    with loading(threads, notes=1) as phases:
        from ...models.loading.load import load, locate

        for name in (*models, *([teacher] if teacher else [])):
            locate(name)  # one that is not there is said before the others are judged

        protocols = listed(protocol) or []
        chosen = None if plan is None else read_plan(plan, private=protocols != ["torch"])
        common: dict[str, Any] = {"plan": chosen, "protocols": protocols, "private": private}
        common["progress"] = phases.step
        evaluations: list[Any]
        if text is not None:
            from ...models.data.reading import whole_text
            from ..client.evaluation import evaluate_text

            prompt = None if system is None else read_system(system, columns.encoding)
            words = whole_text("--text", text, columns.encoding)
            common |= {"title": str(text), "system": prompt, "window": window, **({"tokens": tokens} if tokens else {})}
            common["compiling"] = phases.of("compile")
            phases.end("load")
            evaluations = [evaluate_text(load(name), words, **common) for name in models]
        else:
            common |= {"longest": length or 128, "threads": threads}
            datasets = [columns.read(data or "", seed, locate(name)[1]) for name in models]
            if length is not None and datasets[0].kind == "image":
                raise BlindformerError(f"--length: {datasets[0].name} holds images, which have none; leave it out")
            phases.end("load")
            evaluations = [_of_data(load(name), of, teacher, common) for name, of in zip(models, datasets, strict=True)]
    show = [partial(_show if text is None else _show_text, one) for one in evaluations]
    print_result(form, {"evaluations": [one.to_dict() for one in evaluations]}, *show)


def _of_data(loaded: Loaded, dataset: Any, teacher: str | None, common: dict[str, Any]) -> Any:
    from ...models.loading.load import load
    from ..client.evaluation import evaluate as run

    own = loaded.folder / "teacher"
    taught_by = teacher or (str(own) if own.is_dir() else None)
    return run(loaded, dataset, teacher=None if taught_by is None else load(taught_by), **common)


def _show_text(result: Any) -> None:
    from ..reports.evaluation import TEXT_HEADINGS, text_cells

    out = console()
    plan = f"   plan {result.plan}" if result.plan else ""
    out.print(f"[bold]{result.model}[/]{plan}   text {result.text}: {result.tokens} tokens\n")
    out.print(table(*TEXT_HEADINGS, right=(2, 3, 7), rows=map(text_cells, result.rows)))
    out.print(
        f"\nRead in {result.windows} windows of {result.window} tokens, each after the {result.prefix} that begin "
        "every conversation.\nPerplexity: exp of the mean loss of the text's next tokens; beside it, float32's at the "
        "same places.\nLikeliest token: how often it is the same, in percent. KL: mean divergence from float32, in "
        "nats."
        + (
            f"\nEach token reads the prefix, itself and the {result.attended - 1} just before it."
            if result.attended
            else ""
        )
        + (f"\nPrivate: the first {result.subset} tokens." if result.subset else "")
    )


def _show(result: Any) -> None:
    from ..reports.evaluation import cells

    out = console()
    out.print(
        f"[bold]{result.model}[/]   plan {result.plan}   data {result.data}, seed {result.seed}: {result.tested}\n"
    )
    out.print(table(*result.headings, right=(2, 3, 4), rows=map(cells, result.rows)))
    last = result.rows[-1]
    rows = [(name, *counts) for name, counts in zip(result.labels, last.confusion, strict=True)]
    matrix = table(f"{last.name}, {last.protocol}", *result.labels, right=range(1, len(result.labels) + 1), rows=rows)
    out.print("\ntrue class by row, answer by column")
    out.print(matrix)
    out.print(
        "\nIn brackets: 95% intervals, Wilson's for accuracy, a bootstrap's for F1. Agreement in percent."
        + (f" Private: {result.subset} {result.items}, stratified." if result.subset else "")
    )
