"""`blindformer federate`: a compact model is trained where the examples are, and comes out ready to run privately."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.markup import escape
from typer import Option

from ..parties.cli import options
from ..parties.cli.commands import CommandEntry
from ..parties.cli.output import console, print_json, show_next, spare_folder, table
from ..parties.cli.progress import Phases
from ..parties.cli.steps import loading
from .settings import FederateSettings

SETTINGS = options.SettingsOption(
    FederateSettings, "data", "text", "label", "encoding", "skip_bad", "clients", "rounds", "plan", "seed", "model",
    "secagg", "dp",
)  # fmt: skip
PROTECTS = {
    "central": "protects a client's whole data from who sees the models, not from the server",
    "local": "protects a client's whole data, from the server as well",
    "example": "protects each example from all but its client",
}


@options.grouped
def federate(
    *,
    data: options.Data,
    out: Annotated[Path, Option(help="New folder to write; an unfinished run in it is resumed.")],
    clients: Annotated[int, Option(min=1, help="Clients that the training examples are dealt to.")] = 10,
    rounds: Annotated[
        int | None, Option(min=1, help="Rounds of training and averaging (default: of texts 10, of images 60).")
    ] = None,
    plan: Annotated[
        str | None,
        Option(
            help="A preset or a plan's JSON file (default: of texts the model's own, else faithful; of images fast)."
        ),
    ] = None,
    model: Annotated[str, Option(help="The model of texts that training begins with.")] = "minilm",
    secagg: Annotated[
        bool, Option("--secagg", help="Secure aggregation: the server learns the sum of the updates alone.")
    ] = False,
    dp: Annotated[
        Literal["none", "central", "local", "example"],
        Option(
            help="Differential privacy of a client (central: noise on the sum; local: on updates) or of an example.",
        ),
    ] = "none",
    settings: Annotated[list[str] | None, SETTINGS.option("alpha=0.5")] = None,
    node_config: Annotated[
        list[str] | None,
        Option(help="Clients' terms: least-noise=1.0; N:TERMS: of client N. May be repeated."),
    ] = None,
    engine: Annotated[
        Literal["here", "processes"],
        Option(
            help="Where clients run: here: this process; processes: SuperNodes over TLS.",
        ),
    ] = "here",
    seed: options.Seed = 0,
    columns: options.Columns,
    threads: options.OwnThreads = 1,
    form: options.Form = "text",
) -> None:
    """Train a model among clients that keep their examples, simulated or in processes."""
    given = SETTINGS.read(settings)
    with loading(threads, notes=1) as phases:
        from .settings import needs_flower

        needs_flower()
        from ..models.distillation.checkpoints import check_new
        from .deploy import deploy as in_processes
        from .examples import TABLE, dataset_of, deal
        from .federate import WORK
        from .federate import federate as run
        from .subject import settle
        from .terms import check_needed, node_configs

        logging.getLogger("flwr").setLevel(logging.ERROR)  # it logs every step to the terminal, from its import on
        chosen = FederateSettings(
            data=data, **{key: value or "" for key, value in columns.of_table.items() if key in TABLE},
            skip_bad=columns.skip_bad, clients=clients, rounds=rounds or 0, plan=plan or "",
            seed=seed, model=model, secagg=secagg, dp=dp, **given,
        )  # fmt: skip
        nodes = node_configs(node_config or (), clients)
        check_needed(nodes, chosen)
        dataset = columns.noted(dataset_of(chosen))
        chosen = settle(chosen, dataset)
        deal(dataset.train.labels, clients, chosen.alpha, seed)  # these two refuse before anything is said
        check_new(out, out / WORK)
        phases.end("load")
    if form == "text":
        show_start(chosen, dataset)
    with Phases() as phases:

        def show(round_: Any, total: int) -> None:
            phases.step("rounds", round_.number, total)
            phases.note("rounds", _line(round_))

        wanted: dict[str, Any] = {"nodes": nodes, "progress": show, **chosen.model_dump(exclude_unset=True)}
        result = in_processes(out, **wanted) if engine == "processes" else run(out, dataset, **wanted)
    if form == "json":
        print_json({"folder": str(result.folder), **result.report})
    else:
        show_result(result, columns.again(data))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def _line(round_: Any) -> str:
    spent = "" if round_.epsilon is None else f"   epsilon {round_.epsilon:.2f}"
    lost = f"   lost {len(round_.lost)}" if round_.lost else ""
    return f"round {round_.number}   accuracy {round_.accuracy:.3f}{spent}{lost}"


def show_start(settings: Any, data: Any) -> None:
    """What is about to be done, with all that was left to the kind of data."""
    from .subject import plan_for

    spread = f"Dirichlet {settings.alpha:g}" if settings.alpha else "alike"
    private = ["secure sums"] if settings.secagg else []
    private += [f"dp {settings.dp}"] if settings.dp != "none" else []
    epochs = "one step" if settings.dp == "example" else _many(settings.epochs, "epoch")
    console().print(
        f"{data.name}: {data.kind}s, {len(data.train)} among {settings.clients} clients, {spread}; "
        f"{len(data.validation)} to watch and calibrate by\n"
        f"plan {plan_for(settings).name}   trained: {_trained(settings, data.kind)}\n"
        f"{_many(settings.rounds, 'round')} of {epochs}   {settings.strategy}   "
        f"{', '.join(private) or 'updates are seen by the server'}\n"
    )


def _rounds(numbers: list[int]) -> str:
    """`round 3`, or `rounds 1-4, 7`."""
    ends = [n for n in numbers if n + 1 not in numbers]
    starts = [n for n in numbers if n - 1 not in numbers]
    spans = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))
    return f"round{'s' * (len(numbers) > 1)} {spans}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _trained(settings: Any, kind: str) -> str:
    if kind == "image":
        return f"a new model of width {settings.hidden}"
    layers = f"the last {settings.trained} layers" if settings.trained else "all layers"
    what = f"adapters of rank {settings.lora} (LoRA)" if settings.lora else layers
    return f"{what} and the head of {settings.model}"


def show_result(result: Any, data: list[str]) -> None:
    out, report = console(), result.report
    settings, counts = report["settings"], report["data"]
    out.print(
        f"a round moves {_size(4 * report['weights_that_travel'])} to each client, "
        f"{_size((8 if settings['secagg'] else 4) * report['weights_that_travel'])} back\n"
    )
    private, counted = settings["dp"] != "none", result.rounds[0].clients is not None  # who took part may be a secret
    headings = ["round", "accuracy"] + ["epsilon"] * private + ["loss"] * (not private)
    headings += ["clients", "seconds"] * counted
    rows = table(*headings, right=tuple(range(len(headings))))
    for round_ in result.rounds:
        cells = [str(round_.number), f"{round_.accuracy:.3f}"]
        cells += [f"{round_.epsilon:.2f}"] if private else ["" if round_.loss is None else f"{round_.loss:.3f}"]
        rows.add_row(*cells, *([str(round_.clients), f"{round_.seconds:.1f}"] if counted else []))
    out.print(rows)
    lost: dict[tuple[str, str], list[int]] = {}
    for round_ in result.rounds:
        for name_and_reason in round_.lost.items():
            lost.setdefault(name_and_reason, []).append(round_.number)
    for (name, why), numbers in lost.items():
        out.print(f"{_rounds(numbers)}: {escape(name)}: {escape(why)}")  # a client's own words
    if report["epsilon"] is not None:
        out.print(f"\nepsilon {report['epsilon']:.2f} at delta {settings['delta']:g} {PROTECTS[settings['dp']]}")
    out.print(f"\ntest accuracy {report['test_accuracy']:.3f} with the plan in torch, of {counts['test']} examples")
    compiled = ("compile", result.folder, "--out", spare_folder(result.folder))
    show_next(f"{result.folder} is done", ("evaluate", result.folder, *data), compiled)


COMMANDS = {
    "federate": CommandEntry(
        federate,
        "Build",
        "--data digits --out trained --secagg",
        "--data --out --clients --rounds --plan --model --secagg --dp --set --format",
    )
}
