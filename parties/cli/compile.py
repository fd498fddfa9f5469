"""`blindformer compile MODEL --out DIR`: a model into a folder of two parts, the server's and the clients'."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .inspect import show_circuits
from .output import (
    COMPILE_NOTES,
    MB,
    EmbeddingOption,
    Format,
    FormatOption,
    OwnPlanOption,
    Phases,
    console,
    emit,
    prepare,
    read_plan,
    read_texts,
    table,
    use_threads,
    warn_untrained,
)


def compile_model(
    model: Annotated[str, typer.Argument(help="A model's folder, a Hugging Face id, or minilm.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write; parts of an earlier compilation are replaced.")],
    plan: OwnPlanOption = None,
    lengths: Annotated[
        str | None,
        typer.Option("--lengths", help="Numbers of tokens, with commas (default: 32,64,128). Images have none."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate", help="Texts to calibrate on, one a line (default: built-in ones); images: a folder of them."
        ),
    ] = None,
    embedding: EmbeddingOption = "client",
    outputs: Annotated[
        str | None, typer.Option("--outputs", help="Names of outputs to reveal, with commas (default: all).")
    ] = None,
    texts: Annotated[
        int | None,
        typer.Option(
            "--texts", min=1, help="Texts or images of one query (default: 1; encrypted ones: as many as fill it)."
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, help="Threads to compile with.")] = 1,
    form: FormatOption = Format.text,
) -> None:
    """Compile a model: DIR/server stays with its owner, DIR/client is for everyone who may ask it."""
    prepare()
    with Phases() as phases:
        phases.begin("load", 2)
        phases.note("load", "libraries")
        use_threads(threads)
        from ...models.building import compile_folder
        from ...models.loading.load import load
        from ..reports.inspect import inspect

        chosen, numbers = read_plan(plan) if plan else None, _numbers(lengths)
        phases.note("load", "the model")
        loaded = load(model)
        phases.end("load")
        phases.begin("compile", 2 + (COMPILE_NOTES - 1) * _lengths_of(loaded, numbers))
        compile_folder(
            loaded,
            out,
            lengths=numbers,
            plan=chosen,
            calibration=[calibrate] if calibrate and loaded.kind == "image" else read_texts(calibrate),
            embedding=embedding,
            outputs=[name.strip() for name in outputs.split(",")] if outputs else None,
            texts=texts,
            stage=lambda stage: phases.note("compile", stage),
        )
        phases.end("compile")
        found = inspect(out)
        own = loaded.plan()
    _warn(out, own)
    if form is Format.json:
        emit({"out": str(out), "embedding": embedding, **found.to_dict(), "seconds": phases.seconds})
        return
    _show(found, out)


def _numbers(lengths: str | None) -> list[int] | None:
    from ...protocols.errors import BlindformerError

    if lengths is None:
        return None
    try:
        return [int(number) for number in lengths.split(",")]
    except ValueError:
        raise BlindformerError(f"--lengths {lengths}: give numbers of tokens with commas, as 32,64,128") from None


def _lengths_of(loaded: Any, numbers: list[int] | None) -> int:
    from ...models.building import default_lengths

    return 1 if loaded.kind == "image" else len(set(numbers or default_lengths(loaded)))


def _warn(folder: Path, own: Any) -> None:
    from ...approximations import Plan

    warn_untrained(Plan.load(folder / "server"), own)


def _show(found: Any, folder: Path) -> None:
    out = console()
    out.print(f"[bold]{found.name}[/]   plan {found.plan}\n")
    rows = table("length", "program", "rounds", "online MB", "offline MB", right=(0, 2, 3, 4))
    for item in found.lengths.values():
        rows.add_row(
            str(item.length or "-"),
            item.hash[:12],
            str(item.rounds),
            f"{item.online_bytes / MB:.2f}",
            f"{item.offline_bytes / MB:.2f}",
        )
    out.print(rows)
    show_circuits(out, found, layers=False)
    server, client = found.parts["server"], found.parts["client"]
    out.print(
        f"\n{folder}/server  {server.bytes / MB:.1f} MB: the weights; it stays with their owner\n"
        f"{folder}/client  {client.bytes / MB:.1f} MB: for everyone who may ask; released in it: "
        f"{', '.join(found.released) or 'nothing'}"
    )
