"""`blindformer search MODEL`: the cheapest mixed plan within a loss of accuracy, and what each layer bears."""

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
from .output import MB, Format, FormatOption, Phases, console, emit, prepare, read_plan, table, use_threads

SHOWN = 30  # sensitivities


def search(
    model: Annotated[str, typer.Argument(help="The folder of a classifier.")],
    data: DataOption,
    budget: Annotated[float, typer.Option("--budget", min=0, help="Points of the metric that may be lost.")] = 1.0,
    metric: Annotated[
        str, typer.Option("--metric", help="accuracy on the labels, or agreement with the model in float32.")
    ] = "accuracy",
    plan: Annotated[str, typer.Option("--plan", help="Where to start from: a preset or a plan's file.")] = "faithful",
    out: Annotated[Path | None, typer.Option("--out", help="Write the plan here (default: print it only).")] = None,
    report: Annotated[Path | None, typer.Option("--report", help="Draw the frontier into this .png file.")] = None,
    length: Annotated[int, typer.Option("--length", min=8, help="Tokens of a query.")] = 32,
    network: Annotated[str, typer.Option("--network", help="loopback, lan or wan: what seconds are of.")] = "lan",
    texts: Annotated[int, typer.Option("--texts", min=10, help="Validation texts that plans are judged on.")] = 300,
    heads: Annotated[bool, typer.Option("--heads", help="Try to do without each attention head, too.")] = False,
    seed: SeedOption = 0,
    text_column: TextColumnOption = None,
    label_column: LabelColumnOption = None,
    encoding: EncodingOption = "utf-8",
    data_folder: DataFolderOption = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads.")] = 1,
    form: FormatOption = Format.text,
) -> None:
    """Find the cheapest mix of choices, layer by layer, that loses no more than the budget. Nothing is trained."""
    prepare()
    with Phases() as phases:
        phases.begin("load", 2)
        phases.note("load", "libraries")
        use_threads(threads)
        from ...models.judging.search import search as run
        from ...models.loading.load import load
        from ...protocols.errors import BlindformerError
        from ..reports.estimate import estimate, find_network
        from ..reports.figures import frontier_figure

        near = find_network(network)
        if report is not None and report.suffix != ".png":
            raise BlindformerError(f"{report}: the frontier is a picture; name a .png file")
        base = read_plan(plan)
        phases.note("load", "the model")
        loaded = load(model)
        dataset = read_data(data, seed, data_folder, text_column, label_column, encoding).matched(loaded.labels)
        phases.end("load")

        def price(compiled: Any) -> dict[str, float]:
            priced = estimate(compiled, near)
            return {
                "seconds": priced.online_s,
                "online_bytes": priced.online_bytes,
                "offline_bytes": priced.offline_bytes,
                "rounds": priced.rounds,
            }

        found = run(
            loaded,
            dataset.validation.subset(texts, seed),
            dataset.train.subset(64, seed).texts,
            price,
            base=base,
            budget=budget,
            metric=metric,
            length=length,
            heads=heads,
            progress=phases.step,
        )
        try:
            if out is not None:
                found.chosen.plan.save(out)
            if report is not None:
                report.write_bytes(frontier_figure(found))
        except OSError as error:
            raise BlindformerError(f"{error.filename}: cannot be written ({error.strerror}); choose another") from None
    if form is Format.json:
        emit({**found.to_dict(), "network": network, "data": dataset.name, "seed": seed})
        return
    _show(found, network)


def _show(found: Any, network: str) -> None:
    out = console()
    exact = found.exact
    out.print(
        f"[bold]{found.model}[/]   length {found.length}   from plan {found.points[0].plan.name}   {found.texts} "
        f"validation texts   float32 accuracy {100 * exact.accuracy.value:.1f}   budget {found.budget:g} points of "
        f"{found.metric}\n"
    )
    rows = table("layer", "kind", "choice", "KL, nats", "agreement", "saves, s", "", right=(3, 4, 5))
    for item in found.sensitivities[:SHOWN]:
        change, quality = item.change, item.quality
        note = "needs distillation" if change.needs_distillation else ""
        agreement = f"{100 * quality.agreement.value:.1f}"
        rows.add_row(
            change.layer, change.kind, change.label, f"{quality.divergence:.2g}", agreement, f"{item.saving:.3f}", note
        )
    out.print(rows)
    if len(found.sensitivities) > SHOWN:
        out.print(f"... and {len(found.sensitivities) - SHOWN} more: --format json has them all")
    if found.removals:
        out.print("\nwithout a layer or a head (float32, untrained)")
        rows = table("without", "KL, nats", "agreement", right=(1, 2))
        for item in sorted(found.removals, key=lambda r: r.quality.divergence)[:SHOWN]:
            rows.add_row(item.what, f"{item.quality.divergence:.2g}", f"{100 * item.quality.agreement.value:.1f}")
        out.print(rows)
    out.print("\nfrontier")
    rows = table("changes", "lost, points", "KL, nats", f"seconds, {network}", "", right=(0, 1, 2, 3))
    for point in found.points:
        mark = "chosen" if point is found.chosen else "" if point.within else "over the budget"
        rows.add_row(
            str(point.taken), f"{point.loss:.1f}", f"{point.quality.divergence:.2g}", f"{point.seconds:.3f}", mark
        )
    out.print(rows)
    out.print(f"\nchosen: {_cost(found.chosen.price)}; the plan it started from: {_cost(found.points[0].price)}")
    out.print(
        "Nothing was trained: what needs distillation breaks an untouched model, and the figures show how much.\n"
        "The layers that bear it best are those where a student has least to learn. Give the plan to distill or run."
    )


def _cost(price: dict[str, float]) -> str:
    return f"{price['seconds']:.3f} s, {price['online_bytes'] / MB:.1f} MB online, {price['rounds']:.0f} rounds"
