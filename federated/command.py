"""`blindformer federate`: a compact model is trained where the examples are, and comes out ready to run privately."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from typer import Option

from ..parties.cli import options
from ..parties.cli.output import console, emit, table
from ..parties.cli.progress import Phases
from ..parties.cli.steps import loading

PROTECTS = {
    "central": "protects a client's whole data from who sees the models, not from the server",
    "local": "protects a client's whole data, from the server as well",
    "example": "protects each example from all but its client",
}


@options.grouped
def federate(
    *,
    data: options.Data,
    out: Annotated[Path, Option(help="A new folder; one with an unfinished run is gone on with.")],
    clients: Annotated[int, Option(min=1, help="How many the training examples are dealt to.")] = 10,
    rounds: Annotated[
        int | None, Option(min=1, help="Of training and averaging (default: texts 10, images 60).")
    ] = None,
    strategy: Annotated[
        str, Option(help="Flower's: fedavg, fedprox, fedavgm, fedadam, fedyogi, fedadagrad ...")
    ] = "fedavg",
    alpha: Annotated[float, Option(min=0, help="Of the Dirichlet shares of each class (0: all clients alike).")] = 0.0,
    plan: Annotated[
        str | None,
        Option(
            help="A preset or a plan's JSON file (default for texts: the model's own, else faithful; images: fast).",
        ),
    ] = None,
    model: Annotated[str, Option(help="For texts: the model that training begins with.")] = "minilm",
    layers: Annotated[int, Option(min=0, help="Layers of the model (default: by its kind).")] = 0,
    hidden: Annotated[int, Option(min=8, help="For images: width of the model.")] = 64,
    lora: Annotated[
        int | None, Option(min=0, help="For texts: rank of adapters that travel in place of layers (default: 8).")
    ] = None,
    trained: Annotated[
        int, Option(min=0, help="For texts: train so many last layers whole (0 with --lora 0: all).")
    ] = 0,
    fraction: Annotated[float, Option(min=0.0, max=1.0, help="Of the clients, asked in each round.")] = 1.0,
    epochs: Annotated[int | None, Option(min=1, help="Of a client over its examples, in each round.")] = None,
    rate: Annotated[float, Option(min=0, help="Learning rate of the clients (0: by the kind).")] = 0.0,
    secagg: Annotated[
        bool, Option("--secagg", help="Secure aggregation: the server learns the sum of the updates alone.")
    ] = False,
    dp: Annotated[
        str,
        Option(
            help="Differential privacy: none; of clients: central (noise on the sum), local; of examples: example.",
        ),
    ] = "none",
    sample: Annotated[float, Option(min=0, max=1, help="Share of a client's examples in its step (dp example).")] = 1.0,
    adaptive: Annotated[
        bool, Option("--adaptive", help="The clipping norm follows the updates' median (dp central).")
    ] = False,
    clip: Annotated[
        float | None,
        Option(min=0, help="With --dp: norm that an update, or an example's gradient, is clipped to (default: 1)."),
    ] = None,
    noise: Annotated[
        float | None,
        Option(min=0, help="With --dp: deviation of the noise, in clipping norms (default: by --epsilon)."),
    ] = None,
    epsilon: Annotated[float | None, Option(min=0, help="With --dp: budget of all rounds (default: 8).")] = None,
    delta: Annotated[
        float | None, Option(min=0, max=1, help="With --dp: probability that epsilon may not hold (default: 1e-5).")
    ] = None,
    node_config: Annotated[
        list[str] | None,
        Option(
            help="Terms of all clients, or after N: of one: 'least-noise=1.0 needs-secagg=true most-rounds=20'.",
        ),
    ] = None,
    engine: Annotated[
        str,
        Option(
            **options.one_of("here", "ray"),
            help="Who plays the clients: this process, one by one, or Ray's workers.",
        ),
    ] = "here",
    deploy: Annotated[
        bool, Option("--deploy", help="A SuperLink and a SuperNode a client, as processes here, over TLS.")
    ] = False,
    plot: Annotated[Path | None, Option(help="A picture (.png) of accuracy and epsilon over the rounds.")] = None,
    seed: options.Seed = 0,
    columns: options.Columns,
    threads: options.RepeatableThreads = 1,
    form: options.Form = "text",
) -> None:
    """Train among clients that keep their examples, simulated or in processes; write a model with its plan."""
    overrides: dict[str, Any] = {"epochs": epochs, "clip": clip, "noise": noise, "epsilon": epsilon, "delta": delta}
    overrides = {name: value for name, value in overrides.items() if value is not None}
    with loading(threads, notes=1) as phases:
        from .settings import FederateError, FederateSettings, needs_flower

        needs_flower()
        from ..models.distillation.checkpoints import check_new
        from ..protocols.errors import writing
        from .deploy import deploy as in_processes
        from .deploy import simulate
        from .examples import dataset_of
        from .federate import WORK
        from .federate import federate as run
        from .figures import rounds_figure
        from .partitions import deal
        from .subject import settle
        from .terms import node_configs

        logging.getLogger("flwr").setLevel(logging.ERROR)  # it logs every step to the terminal, from its import on
        if plot is not None and plot.suffix != ".png":
            raise FederateError(f"{plot}: the plot is a picture (.png); name it so")
        chosen = FederateSettings(
            data=data, text=columns.text_column or "", label=columns.label_column or "", encoding=columns.encoding,
            clients=clients, rounds=rounds or 0, strategy=strategy, alpha=alpha, plan=plan or "", seed=seed,
            model=model, layers=layers, hidden=hidden, trained=trained, lora=-1 if lora is None else lora,
            fraction=fraction, rate=rate,
            secagg=secagg, dp=dp, sample=sample, adaptive=adaptive, **overrides,
        )  # fmt: skip
        if deploy and engine == "ray":
            raise FederateError("--deploy has nodes of its own: leave --engine ray out")
        if node_config and engine == "ray":
            raise FederateError("--node-config: Ray's workers have none; use --deploy, or leave --engine ray out")
        nodes = node_configs(node_config or (), clients)
        if (deploy or engine == "ray") and columns.data_folder is not None:
            raise FederateError("--data-folder is for one process; set BLINDFORMER_DATA for several")
        dataset = dataset_of(chosen, columns.data_folder)
        chosen = settle(chosen, dataset)
        deal(dataset.train.labels, clients, alpha, seed)  # these two refuse before anything is said
        check_new(out, out / WORK)
        phases.end("load")
    if form == "text":
        show_start(chosen, dataset)
    with Phases() as phases:

        def show(round_: Any, total: int) -> None:
            phases.step("rounds", round_.number, total)
            phases.note("rounds", _line(round_))

        if engine == "ray":
            result = simulate(out, progress=show, **chosen.model_dump(exclude_unset=True))
        elif deploy:
            result = in_processes(out, nodes=nodes, progress=show, **chosen.model_dump(exclude_unset=True))
        else:
            result = run(out, dataset, nodes=nodes, progress=show, **chosen.model_dump(exclude_unset=True))
    if form == "json":
        emit({"folder": str(result.folder), **result.report})
    else:
        show_result(result, data)
    if plot is not None:
        with writing(plot, "choose another file"):
            plot.write_bytes(rounds_figure(result))


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


def show_result(result: Any, data: str) -> None:
    out, report = console(), result.report
    settings, counts = report["settings"], report["data"]
    out.print(
        f"a round moves {_size(4 * report['weights_that_travel'])} to each client, "
        f"{_size((8 if settings['secagg'] else 4) * report['weights_that_travel'])} back\n"
    )
    private, shown = settings["dp"] != "none", result.rounds[0].clients is not None  # who took part may be a secret
    headings = ["round", "accuracy"] + ["epsilon"] * private + ["loss"] * (not private)
    headings += ["clients", "seconds"] * shown
    rows = table(*headings, right=tuple(range(len(headings))))
    for round_ in result.rounds:
        cells = [str(round_.number), f"{round_.accuracy:.3f}"]
        cells += [f"{round_.epsilon:.2f}"] if private else ["" if round_.loss is None else f"{round_.loss:.3f}"]
        rows.add_row(*cells, *([str(round_.clients), f"{round_.seconds:.1f}"] if shown else []))
    out.print(rows)
    lost: dict[tuple[str, str], list[int]] = {}
    for round_ in result.rounds:
        for reason in round_.lost.items():
            lost.setdefault(reason, []).append(round_.number)
    for (name, why), numbers in lost.items():
        out.print(f"{_rounds(numbers)}: {escape(name)}: {escape(why)}")  # a client's own words
    if report["epsilon"] is not None:
        out.print(f"\nepsilon {report['epsilon']:.2f} at delta {settings['delta']:g} {PROTECTS[settings['dp']]}")
    out.print(
        f"\ntest accuracy {report['test_accuracy']:.3f} with the plan in torch, of {counts['test']} examples\n"
        f"{result.folder} is done: blindformer evaluate {result.folder} --data {data}"
    )


COMMANDS = {"federate": federate}
