"""`blindformer tune MODEL`: the cheapest mixed plan within a loss of accuracy, and what each layer bears."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from typer import Argument, Option

from . import options
from .output import console, mb, print_result, show_next, spare_folder, table
from .steps import check_output, loading, read_plan

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
    out: Annotated[
        Path | None, Option(help="A .json file to write the plan into (default: it is only printed).")
    ] = None,
    length: Annotated[int, Option(min=8, help="Tokens that a query has.")] = 32,
    network: Annotated[str, Option(help="The network that seconds are of: loopback, lan or wan.")] = "lan",
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
    print_result(form, result, lambda: _show(best, network), lambda: _show_next(model, teacher, out, again))
    if out is not None:  # last: what was found is not lost with it
        with writing(out, "choose another"):
            best.chosen.plan.save(out)


def _show(best: Any, network: str) -> None:
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
        + ".\nNothing was trained: what needs distillation breaks an untouched model, and the figures show how much.\n"
        "The layers that bear it best are those where a student has least to learn."
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
