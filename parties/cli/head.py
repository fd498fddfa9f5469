"""`blindformer head`: a classifier from a sentence encoder and labelled texts, in seconds to minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from . import options
from .output import console, show_next, spare_folder, table, tell
from .steps import loading


@options.grouped
def head(
    *,
    model: Annotated[str, Argument(help="The sentence encoder: minilm-fast, minilm, or a model's folder.")],
    data: options.Data,
    out: Annotated[Path | None, Option(help="The new folder to write (default: MODEL-DATA in this folder).")] = None,
    seed: options.Seed = 0,
    length: Annotated[int, Option(min=8, help="Tokens that longer texts are cut at.")] = 128,
    columns: options.Columns,
    threads: options.Threads = 1,
    form: options.Form = "text",
) -> None:
    """Train a linear classifier on a sentence encoder's embeddings, which stay as they are."""
    with loading(threads, notes=1) as phases:
        from ...models.distillation import train_head
        from ...models.distillation.checkpoints import check_new
        from ...models.loading.load import load

        folder = out or Path(f"{Path(model).name}-{Path(data).stem}")
        check_new(folder, folder / "unfinished")
        dataset = columns.read(data, seed)
        phases.note("load", "the model")
        loaded = load(model)
        phases.end("load")
        phases.begin("embed", 1)
        found = train_head(loaded, dataset, folder, seed=seed, length=length)
    report = found.report
    rows = [(part, f"{report['texts'][part]:,}", f"{value:.3f}") for part, value in report["accuracy"].items()]

    def show() -> None:
        screen = console()
        screen.print(f"model {report['model']}   plan {report['plan'] or 'its own functions'}   data {dataset.name}\n")
        screen.print(table("part", "texts", "accuracy", right=(1, 2), rows=rows))
        judge = ("evaluate", found.folder, *columns.again(data))
        show_next(f"{found.folder} is done", judge, ("compile", found.folder, "--out", spare_folder(found.folder)))

    tell(form, {"folder": found.folder, **report}, show)
