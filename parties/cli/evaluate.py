"""`blindformer evaluate` judges a classifier or a language model in torch, in fixed point, and in private; `tune` finds
the cheapest mixed plan within a loss of accuracy, and what each layer bears."""

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
from typing import Literal

from .output import mb, show_next, spare_folder
from .steps import check_output

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
    plan: Annotated[str | None, Option(help="A preset or a JSON file (default: the folder's plan.json).")] = None,
    teacher: Annotated[
        str | None,
        Option(help="Model to measure agreement with (default: DIR/teacher, else float32)."),
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
        int | None, Option(min=32, help="Tokens of a window of the text (default: 256)."), OF_TEXT
    ] = None,
    window: Annotated[options.Window, OF_TEXT] = None,
    system: Annotated[
        Path | None,
        Option(help="File with the system prompt (default: the model's own)."),
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


SHOWN = 30  # sensitivities


@options.grouped
def tune(
    *,
    model: Annotated[str, Argument(help="The folder of the classifier to tune a plan for."), options.NAMES_MODEL],
    data: options.Data,
    budget: Annotated[float, Option(min=0, help="Points of the metric that may be lost.")] = 1.0,
    metric: Annotated[
        Literal["accuracy", "agreement"],
        Option(help="What the budget counts: accuracy, or agreement with float32 or a student's plan."),
    ] = "accuracy",
    plan: options.OwnPlan = None,
    out: Annotated[Path | None, Option(help="A .json file for the plan (default: print it).")] = None,
    length: Annotated[int, Option(min=8, help="Tokens that a query has.")] = 32,
    network: Annotated[str, Option(help="loopback, lan or wan.")] = "lan",
    texts: Annotated[int, Option(min=10, help="Validation texts that plans are judged on.")] = 300,
    seed: options.TrainedSeed = None,
    columns: options.Columns,
    threads: options.OwnThreads = 1,
    form: options.Form = "text",
) -> None:
    """Find the cheapest approximations, layer by layer, within a budget of lost accuracy. Nothing is trained."""
    check_output("--out", out, "a plan in JSON", ".json")
    with loading(threads) as phases:
        from ...models.data import check_unseen
        from ...models.judging.evaluation import check_classifier
        from ...models.judging.search import CALIBRATION
        from ...models.judging.search import search as run
        from ...models.loading.load import load, locate
        from ...protocols.errors import writing
        from ..reports.estimate import estimate, find_network

        near = find_network(network)
        base = None if plan is None else read_plan(plan)
        folder = locate(model)[1]
        dataset = columns.read(data, seed, folder)
        check_unseen(folder, dataset)
        phases.note("load", "the model")
        loaded = load(model)
        check_classifier(loaded)
        dataset = dataset.matched(loaded.labels)
        seed = dataset.reading.seed
        phases.end("load")

        def price(compiled: Any) -> dict[str, float]:
            priced = estimate(compiled, near)
            return {
                "seconds": priced.online_s,
                "online_bytes": priced.online_bytes,
                "offline_bytes": priced.offline_bytes,
                "rounds": priced.rounds,
            }

        best = run(
            loaded,
            dataset.validation.subset(texts, seed),
            dataset.train.subset(CALIBRATION, seed).texts,
            price,
            base=base,
            budget=budget,
            metric=metric,
            length=length,
            progress=phases.step,
        )
    own = loaded.folder / "teacher"
    teacher = own if own.is_dir() else model if best.reference == "float32" else None
    again = columns.again(data, dataset.reading)
    result = {**best.to_dict(), "network": network, "data": dataset.name, "seed": seed}
    print_result(form, result, lambda: _show_tuned(best, network), lambda: _show_next(model, teacher, out, again))
    if out is not None:  # last: what was found is not lost with it
        with writing(out, "choose another"):
            best.chosen.plan.save(out)


def _show_tuned(best: Any, network: str) -> None:
    out = console()
    exact = best.exact
    out.print(
        f"[bold]{best.model}[/]   length {best.length}   from plan {best.points[0].plan.name}   {best.texts} "
        f"validation texts   accuracy of {best.reference} {100 * exact.accuracy.value:.1f}   "
        f"budget {best.budget:g} points of {best.metric}\n"
    )
    rows = [
        (
            item.change.layer,
            item.change.kind,
            item.change.label,
            f"{item.quality.divergence:.2g}",
            _percent(item.quality),
            f"{item.saving:.3f}",
            "needs distillation" if item.change.needs_distillation else "",
        )
        for item in best.sensitivities[:SHOWN]
    ]
    headings = ("layer", "kind", "choice", "KL, nats", "agreement", "saves, s", "")
    out.print(table(*headings, right=(3, 4, 5), rows=rows))
    if len(best.sensitivities) > SHOWN:
        out.print(f"... and {len(best.sensitivities) - SHOWN} more: --format json has them all")
    out.print("\nfrontier")
    points = [
        (
            point.taken,
            f"{point.loss:.1f}",
            f"{point.quality.divergence:.2g}",
            f"{point.seconds:.3f}",
            "chosen" if point is best.chosen else "" if point.within else "over the budget",
        )
        for point in best.points
    ]
    out.print(table("changes", "lost, points", "KL, nats", f"seconds, {network}", "", right=range(4), rows=points))
    out.print(f"\nchosen: {_cost(best.chosen.price)}; the plan it started from: {_cost(best.points[0].price)}")
    out.print(
        f"Lost, KL and agreement: against {best.reference} in torch"
        + ("" if best.reference == "float32" else ", which the weights were trained for")
        + ".\nNothing was trained: the figures show how much each change alters the untouched model.\n"
        "The layers that lose least are those where a student has least to learn."
    )


def _show_next(model: str, teacher: Path | str | None, out: Path | None, data: list[str]) -> None:
    """The commands that use the plan in `out`. `teacher`: of a student for it, on `data`, if any."""
    if out is None:
        console().print("\nThe plan is not kept; --out FILE.json keeps it.")
        return
    show_next("to run the model with this plan", ["compile", model, "--plan", out, "--out", spare_folder(Path(model))])
    if teacher is not None:
        options = ["--plan", out, "--out", f"{Path(model).name}-student"]
        show_next("to train a student for it", ["distill", "--teacher", teacher, *data, *options])


def _percent(quality: Any) -> str:
    return f"{100 * quality.agreement.value:.1f}"


def _cost(price: dict[str, float]) -> str:
    return f"{price['seconds']:.3f} s, {mb(price['online_bytes'], 1)} MB online, {price['rounds']:.0f} rounds"
