"""`blindformer compile MODEL --out DIR`: a model into a folder of two parts, the server's and the clients'."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ...errors import BlindformerError
from . import options
from .inspect import show_circuits, which
from .output import MB, console, mb, table, tell
from .steps import (
    listed,
    load_model,
    loading,
    read_system,
    read_texts,
    refuse,
    warn_untrained,
)


def compile_model(
    model: options.Model,
    out: Annotated[Path, Option(help="Where to write; parts of an earlier compilation are replaced.")],
    plan: options.OwnPlan = None,
    lengths: Annotated[
        str | None, Option(help="Numbers of tokens, with commas (default: 32,64,128). Images have none.")
    ] = None,
    calibrate: options.Calibrate = None,
    embedding: options.Embedding = "client",
    outputs: options.Outputs = None,
    texts: Annotated[
        int | None, Option(min=1, help="Texts or images of one query (default: 1; encrypted ones: as many as fill it).")
    ] = None,
    chat: Annotated[bool, Option("--chat", help="A language model, for chat and generate: token by token.")] = False,
    system: Annotated[Path | None, Option(help="With --chat: the system prompt, a file. It is public.")] = None,
    tokens: Annotated[int | None, Option(min=32, help=options.TOKENS)] = None,
    window: options.Window = None,
    reveal: options.Reveal = None,
    threads: Annotated[int, Option(min=1, help="Threads to compile with.")] = 1,
    form: options.Form = "text",
) -> None:
    """Compile a model: DIR/server stays with its owner, DIR/client is for everyone who may ask it."""
    if chat:
        whole = {"--lengths": lengths, "--outputs": outputs, "--texts": texts}
        refuse(whole, "is not for a model that is compiled with --chat; leave it out")
    else:
        of_chat = {"--system": system, "--tokens": tokens, "--window": window, "--reveal": reveal}
        refuse(of_chat, "is for a model that is compiled with --chat; add --chat, or leave it out")
    with loading(threads) as phases:
        from ...approximations import Plan
        from ...models.building import compile_folder
        from ..reports.inspect import inspect

        numbers = _numbers(lengths)
        loaded, chosen = load_model(phases, model, plan)
        phases.end("load")
        phases.begin("compile")
        common: dict[str, Any] = {"plan": chosen, "progress": phases.of("compile")}
        if chat:
            from ...models.generation.folder import compile_chat_folder

            said = None if system is None else read_system(system)
            common |= {"reveal": reveal or "scores", "embedding": embedding, "window": window}
            compile_chat_folder(loaded, out, system=said, slots=tokens, texts=read_texts(calibrate), **common)
        else:
            compile_folder(
                loaded,
                out,
                lengths=numbers,
                calibration=[calibrate] if calibrate and loaded.task.medium is not None else read_texts(calibrate),
                embedding=embedding,
                outputs=listed(outputs),
                texts=texts,
                **common,
            )
        phases.end("compile")
        found = inspect(out)
        own = loaded.plan()
    warn_untrained(Plan.load(out / "server"), own)
    told = {"out": out, "embedding": embedding, **found.to_dict(), "seconds": phases.seconds}
    tell(form, told, lambda: _show(found, out))


def _numbers(lengths: str | None) -> list[int] | None:
    if lengths is None:
        return None
    try:
        return [int(number) for number in lengths.split(",")]
    except ValueError:
        raise BlindformerError(f"--lengths {lengths}: give numbers of tokens with commas, as 32,64,128") from None


def _show(found: Any, folder: Path) -> None:
    out = console()
    room = f"   conversations of {found.slots} tokens, by tokens of a pass" if found.slots else ""
    out.print(f"[bold]{found.name}[/]   plan {found.plan}{room}\n")
    rows = [
        (which(item), item.hash[:12], item.rounds, mb(item.online_bytes), mb(item.offline_bytes))
        for item in found.programs
    ]
    out.print(table("length", "program", "rounds", "online MB", "offline MB", right=(0, 2, 3, 4), rows=rows))
    show_circuits(out, found, layers=False)
    server, client = found.parts["server"], found.parts["client"]
    out.print(
        f"\n{folder}/server  {server.bytes / MB:.1f} MB: the weights; it stays with their owner\n"
        f"{folder}/client  {client.bytes / MB:.1f} MB: for everyone who may ask; released in it: "
        f"{', '.join(found.released) or 'nothing'}"
    )
