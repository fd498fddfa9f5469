"""`blindformer compile MODEL --out DIR`: a model into a folder of two parts, the server's and the clients'."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ...errors import BlindformerError
from ..launch import LOCAL
from ..registry import DEFAULT, PRIVATE_HEAD, find, protocol_for
from . import options
from .commands import Needs, Without
from .items import listed
from .models import show_circuits, which
from .output import MB, TYPICAL, console, mb, print_result, show_next, table
from .steps import (
    LAN,
    Weights,
    check_there,
    for_network,
    load_model,
    loading,
    read_lengths,
    read_system,
    read_texts,
    refuse,
    refuse_for_public,
    warn_untrained,
    weights_of,
)

WHOLE, TALKS = Without("--chat"), Needs("--chat")
MOST_TOKENS = "Tokens of a conversation (default: 256; with --window the maximum), or of an answer (default: 128)."
OTHER = "My password is lost."


@options.grouped
def compile_model(
    *,
    model: options.Model,
    adapter: Annotated[
        list[str] | None,
        Option(
            metavar="[NAME=]FOLDER",
            help="A LoRA adapter that peft saved; NAME=FOLDER compiles several beside the base (default: none).",
        ),
    ] = None,
    out: Annotated[Path, Option(help="Folder to write; parts of an earlier compilation in it are replaced.")],
    plan: options.OwnPlan = None,
    network: Annotated[
        str,
        Option(help="lan (0.5 ms, 1 Gbit/s), loopback, or wan (40 ms, 100 Mbit/s): fewer rounds, more bytes."),
    ] = LAN,
    lengths: Annotated[options.Lengths, WHOLE] = None,
    seconds: Annotated[options.Seconds, WHOLE] = None,
    calibrate: options.Calibrate = None,
    embedding: options.Embedding = "client",
    weights: Weights = None,
    outputs: Annotated[
        str | None, Option(help="The model's outputs to reveal, with commas (default: all)."), WHOLE
    ] = None,
    texts: Annotated[
        int | None,
        Option(min=1, help="Texts or images of one query (default: 1; encrypted: as many as fit)."),
        WHOLE,
    ] = None,
    chat: Annotated[
        bool, Option("--chat", help="Compile a language model to answer token by token, for chat.")
    ] = False,
    system: Annotated[options.System, TALKS] = None,
    tokens: Annotated[int | None, Option(min=32, help=MOST_TOKENS)] = None,
    window: Annotated[options.Window, TALKS] = None,
    reveal: Annotated[options.Reveal, TALKS] = None,
    threads: options.OwnThreads = 1,
    form: options.Form = "text",
) -> None:
    """Compile a model: DIR/server stays with its owner, DIR/client is for every client."""
    numbers = read_lengths(lengths)
    prompt = None if system is None else read_system(system)
    check_there("--calibrate", calibrate)
    owners = weights_of(weights)
    # A folder's adapter is its owner's; who asks puts an own one on a public model later.
    public = DEFAULT if adapter else protocol_for(DEFAULT, owners, embedding, heads=True)
    head = owners == PRIVATE_HEAD
    if adapter and head:
        raise BlindformerError("--adapter: is put on a public model, and --weights private-head makes a part private")
    if find(public).as_it_is:
        given = {"--calibrate": calibrate, "--outputs": outputs, "--texts": texts, "--lengths": lengths}
        given |= {"--tokens": tokens, "--window": window, "--reveal": reveal}
        refuse_for_public(public, given, head)
        how = {"system": prompt, "seconds": seconds}
        if head:
            how |= {"head": True, "lengths": numbers, "calibration": calibrate}
        _delegate(model, out, plan, how, threads, form)
        return
    with loading(threads) as phases:
        from ...approximations import Plan
        from ...models.artifacts.writing import check_free
        from ...models.building import CALIBRATION_IMAGES, compile_beside, compile_folder
        from ..reports.estimate import find_network
        from ..reports.inspect import inspect

        check_free(out)
        named, single = _adapters(adapter or [])
        near = find_network(network)
        loaded, chosen = load_model(phases, model, plan, single)
        phases.end("load")
        phases.begin("compile")
        images = calibrate is not None and loaded.task.medium is not None
        texts_known = None if images else read_texts(calibrate)
        whose = owners or ("public" if named else None)
        chosen = for_network(chosen, near)
        common: dict[str, Any] = {"plan": chosen, "embedding": embedding, "weights": whose}
        if chat:
            from ...models.generation.folder import compile_chat_folder

            common |= {"system": prompt, "slots": tokens, "texts": texts_known, "window": window}
            make: Callable[..., Path] = partial(compile_chat_folder, reveal=reveal or "scores", **common)
        elif loaded.task.writes:
            from ...models.generation.folder import compile_seq2seq_folder

            refuse({"--outputs": outputs, "--texts": texts}, f"{loaded.name} writes a text about each; leave it out")
            common |= {"slots": tokens, "calibration": [calibrate] if images else texts_known}
            make = partial(compile_seq2seq_folder, lengths=numbers, seconds=seconds, **common)
        else:
            refuse({"--seconds": seconds}, f"is of models that write down speech, and {loaded.name} does not")
            refuse({"--tokens": tokens}, "is of models that answer token by token; leave it out, or add --chat")
            common |= {"lengths": numbers, "outputs": listed(outputs), "texts": texts}
            make = partial(compile_folder, calibration=[calibrate] if images else texts_known, **common)
        compile_beside(model, loaded, named, out, make, phases.of("compile"))
        phases.end("compile")
        inspection = inspect(out)
        own, task, calibration = loaded.plan(), loaded.task, calibrate or loaded.folder / CALIBRATION_IMAGES
    warn_untrained(Plan.load(out / "server"), own)
    result = {"out": out, "embedding": embedding, **inspection.to_dict(), "seconds": phases.seconds}
    print_result(
        form,
        result,
        lambda: _show(inspection, out, "answers" if task.writes else "conversations"),
        lambda: _show_next(out, task, calibration, chat, any(item.circuit for item in inspection.programs)),
    )


def _delegate(model: str, out: Path, plan: str | None, given: dict[str, Any], threads: int, form: options.Form) -> None:
    """Of a model whose weights are all public, but for a head: what server, dealer and client need to run it as it is.
    `given`: options of `delegate_folder`."""
    with loading(threads) as phases:
        from ...models.artifacts.layout import versions
        from ...models.delegated.building import delegate_folder
        from ...models.delegated.head import private_of
        from ...models.delegated.weights import load_weights
        from ...models.loading.load import load
        from ..session.delegation import PublicWeights

        loaded = load(model, mapped=True)
        phases.end("load")
        phases.begin("compile")
        if "calibration" in given:
            file = given["calibration"]
            given["calibration"] = [file] if file and loaded.task.medium is not None else read_texts(file)
        delegate_folder(loaded, out, plan=plan, progress=phases.of("compile"), **given)
        phases.end("compile")
        weights = PublicWeights(*load_weights(out, "server"))
        sizes = {part: sum(f["bytes"] for f in versions(out / part)["files"].values()) for part in ("server", "client")}
        private = private_of(loaded.model) if "head" in given else []
    result = {"out": out, "model": loaded.name, "program": weights.manifest.digest, "bytes": sizes, "private": private}

    def show() -> None:
        console().print(
            f"[bold]{weights.about}[/]   program {weights.manifest.digest[:12]}\n\n"
            f"{out}/server, {out}/dealer  {sizes['server'] / MB:.1f} MB each: public weights, for two operators that "
            f"do not collude\n{out}/client  {sizes['client'] / MB:.1f} MB: for everyone who may ask"
        )
        if private:
            console().print(f"private, in {out}/server alone: {', '.join(private)}; all other parameters are public")

    def show_commands() -> None:
        show_next("to try it on this machine", ["chat" if loaded.kind == "causal" else "query", out, TYPICAL])
        certs = ["--certs", "certs"]
        show_next(
            "to serve it, each in a shell of its own",
            ["certs", "make", "certs"],
            ["dealer", out / "dealer", *certs],
            ["serve", out / "server", *certs],
        )

    print_result(form, result, show, show_commands)


def _adapters(given: Sequence[str]) -> tuple[dict[str, Path], Path | None]:
    """Those with a name, and the one without, which no others go with. Errors: LoadError."""
    from ...models.loading.adapters import parse_adapters

    if len(given) == 1 and "=" not in given[0]:
        return {}, Path(given[0])
    return parse_adapters(given), None


def _show(inspection: Any, folder: Path, written: str) -> None:
    out = console()
    room = f"   {written} of {inspection.slots} tokens, by tokens of a pass" if inspection.slots else ""
    out.print(f"[bold]{inspection.name}[/]   plan {inspection.plan}{room}\n")
    rows = [
        (which(item), item.hash[:12], item.rounds, mb(item.online_bytes), mb(item.offline_bytes))
        for item in inspection.programs
    ]
    out.print(table("length", "program", "rounds", "online MB", "offline MB", right=(0, 2, 3, 4), rows=rows))
    show_circuits(out, inspection, layers=False)
    server, client = inspection.parts["server"], inspection.parts["client"]
    out.print(
        f"\n{folder}/server  {server.bytes / MB:.1f} MB: the weights; it stays with their owner\n"
        f"{folder}/client  {client.bytes / MB:.1f} MB: for everyone who may ask; released in it: "
        f"{', '.join(inspection.released) or 'nothing'}"
    )
    if inspection.public_weights:
        out.print(f"{len(inspection.public_weights)} parameters are public: every computing party holds them")


def _show_next(folder: Path, task: Any, files: Path, chat: bool, encrypted: bool) -> None:
    """How to ask it. files: images or recordings that a model of those was calibrated on, or a folder of them."""
    from ...models.loading.media import media_files

    protocol = ["--protocol", "ckks"] if encrypted else []
    asking: list[Any] = ["chat", folder] if chat else ["query", folder, "--server", LOCAL, *protocol]
    if task.medium is not None:
        asking += [media_files(task.kind, [files])[0] if files.exists() else f"your{task.medium.endings[0]}"]
    else:
        item = task.typical([TYPICAL, OTHER])[0]
        asking += [item] if isinstance(item, str) else [item[0], "--pair", item[1]]
    if task.processor is not None:  # else it takes tensors
        show_next("to try it on this machine", asking)
    commands: list[list[Any]] = [
        ["certs", "make", "certs"],
        ["serve", folder / "server", "--certs", "certs", *protocol],
    ]
    if not encrypted:
        commands.insert(1, ["dealer", "--certs", "certs"])
    show_next("to serve it, each in a shell of its own", *commands)
