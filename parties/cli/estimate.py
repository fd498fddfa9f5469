"""`blindformer estimate MODEL`: what a private query will cost, layer by layer, before anybody runs one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from .output import (
    MB,
    CalibrateOption,
    EmbeddingOption,
    Format,
    FormatOption,
    Phases,
    PlanOption,
    console,
    emit,
    prepare,
    read_plan,
    read_texts,
    table,
    use_threads,
)


def estimate(
    model: Annotated[str, typer.Argument(help="A model's folder, a Hugging Face id, or minilm.")],
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens.")] = 128,
    plan: PlanOption = "faithful",
    network: Annotated[
        str, typer.Option("--network", help="loopback, lan (0.5 ms, 1 Gbit/s) or wan (40 ms, 100 Mbit/s).")
    ] = "lan",
    calibrate: CalibrateOption = None,
    embedding: EmbeddingOption = "client",
    form: FormatOption = Format.text,
) -> None:
    """Bytes and rounds of one query, exact, and its seconds on a network. Nothing is run privately."""
    prepare()
    with Phases() as phases:
        phases.begin("load")
        use_threads(1)
        from ...models.loading import load
        from ...models.pricing import NETWORKS
        from ...protocols.errors import BlindformerError
        from ..estimate import estimate as priced
        from ..local import compile_text, versions

        if network not in NETWORKS:
            raise BlindformerError(f"network {network}: not known; choose one of {', '.join(NETWORKS)}")
        chosen, texts = read_plan(plan), read_texts(calibrate)
        loaded = load(model)
        if loaded.positions is not None and length > loaded.positions:
            raise BlindformerError(f"length {length}: the model takes {loaded.positions} tokens; lower --length")
        phases.end("load")
        phases.begin("compile")
        compiled = compile_text(
            loaded, length, chosen, texts=texts, embedding=embedding, stage=lambda stage: phases.note("compile", stage)
        )
        phases.end("compile")
        found = priced(compiled, network)
    if form is Format.json:
        head = {"model": model, "length": length, "plan": compiled.plan.name, "protocol": "beaver"}
        emit({**head, **asdict(found), "versions": versions()})
        return
    _show(loaded.name, length, compiled.plan.name, found)


def _show(name: str, length: int, plan: str, found: Any) -> None:
    out = console()
    out.print(f"[bold]{name}[/]   length {length}   plan {plan}   protocol beaver   network {found.network}\n")
    rows = table("layer", "online MB", "offline MB", "million MACs", "rounds", right=(1, 2, 3, 4))
    for layer in found.layers:
        rows.add_row(
            layer.path,
            f"{layer.online_bytes / MB:.2f}",
            f"{layer.offline_bytes / MB:.2f}",
            f"{layer.macs / 1e6:.1f}",
            str(layer.rounds),
        )
    rows.add_row(
        "[bold]total[/]",
        f"{found.online_bytes / MB:.2f}",
        f"{found.offline_bytes / MB:.2f}",
        f"{found.macs / 1e6:.1f}",
        str(found.rounds),
    )
    out.print(rows)
    out.print(
        "\n(layers share rounds, so their rounds add up to more than the total)\n"
        f"online   about {found.online_s:.2f} s on {found.network}: {found.up / MB:.1f} MB up, "
        f"{found.down / MB:.1f} MB down, {found.rounds} rounds\n"
        f"offline  {found.offline_bytes / MB:.1f} MB from the dealer, {found.offline_wire_s:.2f} s on the wire\n"
        f"set-up   {found.setup_bytes / MB:.1f} MB of masked weights, once"
    )
