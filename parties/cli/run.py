"""`blindformer run MODEL TEXT...`: texts through a model in a private session on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .answers import answer_table, as_json, asked, in_words, similarities
from .items import paired
from .output import (
    CalibrateOption,
    EmbeddingOption,
    Format,
    FormatOption,
    LengthOption,
    OwnPlanOption,
    PairOption,
    Phases,
    Protocol,
    ThreadsOption,
    TimeoutOption,
    console,
    emit,
    prepare,
    read_plan,
    read_texts,
    use_threads,
    warn_untrained,
)

DEFAULT_PARTIES = 2


def run(
    model: Annotated[str, typer.Argument(help="A model's folder, a Hugging Face id, or minilm.")],
    text: Annotated[list[str], typer.Argument(help="One or more texts (for a model of images: files).")],
    pair: PairOption = None,
    plan: OwnPlanOption = None,
    protocol: Annotated[
        Protocol,
        typer.Option(
            "--protocol", help="beaver; crypten: N parties; ckks: encrypted; clear, crypten-insecure: to compare."
        ),
    ] = Protocol.beaver,
    parties: Annotated[
        int, typer.Option("--parties", help="Parties of protocol crypten, besides the dealer.")
    ] = DEFAULT_PARTIES,
    recipient: Annotated[
        str | None, typer.Option("--recipient", help="Of protocol crypten: who gets the answers (default: bob).")
    ] = None,
    owner: Annotated[
        list[str] | None,
        typer.Option("--owner", help="Of protocol crypten: INPUT=NAME, who owns an input (default: bob); repeatable."),
    ] = None,
    length: LengthOption = "auto",
    calibrate: CalibrateOption = None,
    embedding: EmbeddingOption = "client",
    outputs: Annotated[
        str | None, typer.Option("--outputs", help="Names of outputs to reveal, with commas (default: all).")
    ] = None,
    threads: ThreadsOption = 1,
    timeout: TimeoutOption = 120,
    form: FormatOption = Format.text,
) -> None:
    """Run texts privately: server, dealer and client as three processes of this machine, over TLS.

    With protocol crypten: a dealer and as many parties as you say: alice, bob, carol ... The first owns the model, the
    second the texts.
    """
    prepare()
    roster = _roster(protocol, parties, recipient, owner or [])
    texts = paired(list(text), pair or [])
    with Phases() as phases:
        phases.begin("load")
        use_threads(threads)
        from ...models.building import compile_images, own_plan
        from ...models.loading import load
        from ..local import compare, compile_for, compile_text

        chosen = read_plan(plan) if plan else None
        loaded = load(model)
        chosen = own_plan(loaded) if chosen is None else chosen
        trained = plan is None and not isinstance(chosen, str)
        images = loaded.kind == "image"
        calibration = None if images else read_texts(calibrate)
        size = 0 if images else loaded.length_for(texts, length)
        phases.end("load")
        phases.begin("compile")
        options: dict[str, Any] = {
            "embedding": embedding,
            "outputs": [name.strip() for name in outputs.split(",")] if outputs else None,
            "stage": lambda stage: phases.note("compile", stage),
        }

        def make(rows: int) -> Any:
            if images:
                return compile_images(loaded, [calibrate] if calibrate else None, chosen, rows=rows, **options)
            return compile_text(loaded, size, chosen, texts=calibration, rows=rows, **options)

        compiled = compile_for(protocol.value, len(texts), make)
        phases.end("compile")
        warn_untrained(compiled.plan, loaded.plan())
        inputs = [loaded.encode_image(item) if images else loaded.encode(item, size) for item in texts]
        found = compare(
            loaded,
            compiled,
            inputs,
            protocol=protocol.value,
            threads=threads,
            timeout=timeout,
            progress=phases.step,
            roster=roster,
            trained=trained,
        )
    task = loaded.task
    asking = zip(found.private, inputs, texts, strict=True)
    values = [task.read(private, given, item=None if images else item) for private, given, item in asking]
    results = [
        {**asked(task.pipeline, item), **as_json(task.pipeline, value)}
        for item, value in zip(texts, values, strict=True)
    ]
    summary = found.summary(model, size, normalised=loaded.kind == "sentence")
    if roster is not None:
        summary |= {"parties": parties, "recipient": roster.names[roster.recipient_rank]}
    if task.pipeline == "sentence-embedding" and len(texts) > 1:
        summary["similarities"] = similarities(texts, values)
    if form is Format.json:
        emit({**summary, "results": results, "learned": found.reports[-1].learned})
        return
    _show(loaded.name, task.pipeline, list(zip(texts, values, strict=True)), summary, found.reports)


def _roster(protocol: Protocol, parties: int, recipient: str | None, owners: list[str]) -> Any:
    """Who is who among N parties; None for another protocol. Refuses what cannot be before anything slow happens.

    Errors: RosterError, CryptenError.
    """
    from ..kinds import REFERENCE, find_kind
    from ..many.roster import Roster, RosterError, numbered

    kind = None if protocol == REFERENCE and parties == DEFAULT_PARTIES else find_kind(protocol.value, parties)
    if kind is not None and kind.fixed is None:
        pairs = [item.rpartition("=") for item in owners]
        for name, equals, _ in pairs:
            if not name or not equals:
                raise RosterError("--owner: say INPUT=NAME, such as attention_mask=carol")
        return Roster(numbered(parties).names, {name: who for name, _, who in pairs}, recipient or "")
    for option, given in {"--recipient": recipient is not None, "--owner": bool(owners)}.items():
        if given:
            raise RosterError(f"{option}: protocol {protocol.value} has fixed parties; use --protocol crypten")
    return None


def _setting(summary: dict[str, Any]) -> str:
    from ..kinds import KINDS

    kind = KINDS.get(summary["protocol"])
    if kind is None:
        return "protocol clear: the reference, in one process; it hides nothing"
    if kind.insecure:
        return f"INSECURE, protocol {summary['protocol']}: {kind.insecure}"
    return f"{kind.who.format(**summary)}   TLS 1.3   plan {summary['plan']}"


def _show(name: str, task: str, answers: list[tuple[Any, Any]], summary: dict[str, Any], reports: list[Any]) -> None:
    from ..kinds import KINDS
    from ..report import each_in_words

    out, kind = console(), KINDS.get(summary["protocol"])
    costs = each_in_words if kind is None else kind.costs
    out.print(_setting(summary))
    if "recipient" in summary:
        out.print(f"the answers go to {summary['recipient']}")
    padded = f", padded to {summary['length']} tokens" if summary["length"] else ""
    out.print(f"model {name}   {'texts' if summary['length'] else 'images'} {len(answers)}{padded}\n")
    words = [(item, in_words(task, value)) for item, value in answers]
    out.print(answer_table(task, words, summary.get("similarities")))
    out.print(
        f"\n{costs(reports, 'a text' if summary['length'] else 'an image')}   "
        f"in the clear {summary['plaintext_s'] * 1000:.0f} ms\n"
        f"largest error against float32 {summary['max_abs_error']:.4f}, cosine at least {summary['cosine_min']:.6f}"
    )
