"""`blindformer distill` and `blindformer train`: a student of a teacher, or a classifier on a sentence encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ...errors import BlindformerError
from ...models.distillation_settings import DistillSettings
from ..launch import LOCAL
from . import options
from .commands import Without
from .items import note_columns
from .output import TYPICAL, console, note, print_result, show_next, spare_folder, table
from .steps import loading, read_plan

OF_TEXTS = Without("--teacher vit")
SETTINGS = options.SettingsOption(DistillSettings, "seed", "layers", "length")


@options.grouped
def distill(
    *,
    data: options.Data,
    out: Annotated[Path, Option(help="New folder to write; an unfinished run in it is resumed.")],
    teacher: Annotated[
        str,
        Option(
            help="The teacher: a classifier's folder, an encoder (fine-tuned first), or vit (a new image model).",
        ),
        options.NAMES_MODEL,
    ] = "minilm",
    plan: options.Plan = "fast",
    transfer: Annotated[
        str | None,
        Option(help="More texts, which the teacher labels (default: none)."),
        Without("--embeddings", "--teacher vit"),
    ] = None,
    start: Annotated[
        str | None,
        Option(help="A student to continue from, of the same shape (default: the teacher's weights)."),
    ] = None,
    budget: Annotated[
        str | None,
        Option(
            help="Most that a query may cost on a LAN: 0.2s, 50MB (default: none).",
        ),
        Without("--layers", "--teacher vit"),
    ] = None,
    embeddings: Annotated[
        bool,
        Option("--embeddings", help="Teach a sentence encoder's embeddings, for no task; labels do not count."),
        OF_TEXTS,
    ] = False,
    seed: options.Seed = 0,
    layers: Annotated[
        int | None, Option(min=1, help="Layers of the student (default: all of the teacher's, of a compact student 1).")
    ] = None,
    length: Annotated[
        int | None,
        Option(min=8, help="Tokens that training texts are cut to (default: 64, with --embeddings 128)."),
        OF_TEXTS,
    ] = None,
    settings: Annotated[list[str] | None, SETTINGS.option("hidden=64")] = None,
    columns: options.Columns,
    device: options.Device = None,
    threads: options.OwnThreads = 1,
    form: options.Form = "text",
) -> None:
    """Train a student that uses a plan's approximations to answer as its teacher does."""
    with loading(threads, notes=1) as phases:
        from ...models.data import load_texts
        from ...models.distillation import TrainingStep
        from ...models.distillation import distill as run
        from ...models.distillation.budget import read_budget

        chosen = read_plan(plan)
        given: dict[str, Any] = {"layers": layers, "length": length, **SETTINGS.read(settings)}
        given = {name: value for name, value in given.items() if value is not None}
        chosen_settings = DistillSettings(**given)
        if budget is not None:
            read_budget(budget)  # before data is read
            if chosen_settings.hidden:
                raise BlindformerError(
                    "--budget: counts a teacher's layers, and a compact student has others; leave it out"
                )
        dataset = columns.read(data, seed)
        more = None
        if transfer is not None:
            reading = {"text": columns.text_column, "encoding": columns.encoding, "skip_bad": columns.skip_bad}
            more = columns.noted(load_texts(transfer, seed=seed, **reading))
            note_columns(Path(transfer), None, columns.encoding, columns.text_column, "--text-column")
        phases.end("load")
        affordable = None
        if budget is not None:
            from ..reports.estimate import affordable_layers

            phases.begin("price", 1)
            affordable = affordable_layers(
                budget,
                teacher,
                dataset,
                chosen,
                embeddings=embeddings,
                length=length,
                pool=chosen_settings.pool,
                heads=chosen_settings.heads,
                intermediate=chosen_settings.intermediate,
                progress=lambda model: phases.note("price", model),
            )
            phases.end("price")
            note(f"budget {budget}, on a LAN: {affordable}")
            given["layers"] = affordable.layers

        def show(step: TrainingStep) -> None:
            phases.step(step.stage, step.step, step.steps)
            best = "" if step.metric is None else f"   best {step.metric:.4f}"
            phases.note(step.stage, f"epoch {step.epoch + 1}   loss {step.loss:.3f}{best}")

        student = run(
            teacher,
            dataset,
            out,
            chosen,
            transfer=more,
            start=start,
            embeddings=embeddings,
            device=device or "cpu",
            progress=show,
            seed=seed,
            **given,
        )
    cut = isinstance(dataset.train.inputs, list)
    result = {"folder": student.folder, **student.report}
    if affordable is not None:
        result["budget"] = {"given": budget, "prices": affordable.prices}
    print_result(form, result, lambda: _show(student.folder, student.report, columns.again(data), cut))


def _show(folder: Path, report: dict[str, Any], data: list[str], cut: bool) -> None:
    out, counts = console(), report["data"]
    length = f"   length {report['settings']['length']}" if cut else ""
    layers = len(report["kept_layers"]) or report["settings"]["layers"] or 1
    pool = ",".join(map(str, report["settings"]["pool"] or ()))
    halved = f", tokens halved after {pool}" if pool else ""
    out.print(
        f"teacher {report['teacher']}   plan {report['plan']}   layers {layers}{halved}{length}   data "
        f"{counts['name']}: {counts['train']} to train on, {counts['validation']} to choose by\n"
    )
    measure = next(name for name in report if name.startswith("validation_"))
    scores = [(who.replace("_", " "), f"{value:.3f}") for who, value in report[measure].items()]
    out.print(table("on validation", measure.removeprefix("validation_"), right=(1,), rows=scores))
    left = report["sites_out_of_range"]
    out.print(
        f"\n{len(left)} call sites leave their calibrated range on validation" + (f", first {left[0]}" if left else "")
    )
    _show_next(folder, None if measure == "validation_spearman" else data)  # embeddings have no classes


def _show_next(folder: Path, data: list[str] | None, *first: tuple[object, ...]) -> None:
    judge = [] if data is None else [("evaluate", folder, *data)]
    show_next(f"{folder} is done", *first, *judge, ("compile", folder, "--out", spare_folder(folder)))


@options.grouped
def train(
    *,
    model: Annotated[
        str,
        Argument(
            help="The sentence encoder: one in a package, such as minilm-fast, or a model's folder.",
        ),
        options.NAMES_MODEL,
    ],
    data: options.Data,
    out: Annotated[Path | None, Option(help="The new folder to write (default: MODEL-DATA in this folder).")] = None,
    seed: options.Seed = 0,
    length: Annotated[int, Option(min=8, help="Tokens that longer texts are cut at.")] = 128,
    columns: options.Columns,
    threads: options.Threads = 1,
    form: options.Form = "text",
) -> None:
    """Train a linear classifier on a sentence encoder's embeddings."""
    with loading(threads, notes=1) as phases:
        from ...models.distillation import train_head
        from ...models.distillation.checkpoints import check_new
        from ...models.loading.load import load

        folder = out or Path(f"{Path(model).name}-{Path(data.partition('=')[0]).stem}")
        check_new(folder, folder / "unfinished")
        dataset = columns.read(data, seed)
        phases.note("load", "the model")
        loaded = load(model)
        phases.end("load")
        phases.begin("embed", 1)
        trained = train_head(loaded, dataset, folder, seed=seed, length=length)
    report = trained.report
    rows = [(part, f"{report['texts'][part]:,}", f"{value:.3f}") for part, value in report["accuracy"].items()]

    def show() -> None:
        screen = console()
        screen.print(f"model {report['model']}   plan {report['plan'] or 'its own functions'}   data {dataset.name}\n")
        screen.print(table("part", "texts", "accuracy", right=(1, 2), rows=rows))
        _show_next(trained.folder, columns.again(data), ("query", trained.folder, "--server", LOCAL, TYPICAL))

    print_result(form, {"folder": trained.folder, **report}, show)
