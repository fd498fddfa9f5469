"""`blindformer estimate MODEL`: what a private query will cost, layer by layer, before anybody runs one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import typer

from ..registry import find, of_parties, resolve
from .output import (
    COMPILE_NOTES,
    DEFAULT,
    MB,
    CalibrateOption,
    EmbeddingOption,
    Format,
    FormatOption,
    OwnPlanOption,
    Phases,
    PricedOption,
    console,
    emit,
    prepare,
    read_plan,
    read_texts,
    table,
    use_threads,
)

ROLES = ("server", "client", "dealer")


def estimate(
    model: Annotated[str, typer.Argument(help="A model's folder, a Hugging Face id, or minilm.")],
    length: Annotated[int, typer.Option("--length", min=1, help="Tokens.")] = 128,
    plan: OwnPlanOption = None,
    network: Annotated[
        str, typer.Option("--network", help="loopback, lan (0.5 ms, 1 Gbit/s) or wan (40 ms, 100 Mbit/s).")
    ] = "lan",
    rtt: Annotated[
        float | None, typer.Option("--rtt", min=0, help="Milliseconds there and back, as doctor says.")
    ] = None,
    bandwidth: Annotated[
        float | None, typer.Option("--bandwidth", min=0.001, help="Mbit/s each way, as doctor says.")
    ] = None,
    protocol: PricedOption = DEFAULT,
    parties: Annotated[int, typer.Option("--parties", help="Parties of protocol crypten, besides the dealer.")] = 2,
    calibrate: CalibrateOption = None,
    embedding: EmbeddingOption = "client",
    form: FormatOption = Format.text,
) -> None:
    """Bytes and rounds of one query, exact, and its seconds on a network. Nothing is sent, and nothing is secret.

    With protocol crypten: bytes of each party, and rounds; no seconds.
    """
    prepare()
    with Phases() as phases:
        phases.begin("load", 2)
        phases.note("load", "libraries")
        use_threads(1)
        from ...models.building import compile_images, own_plan
        from ...models.loading.load import load
        from ...protocols.errors import BlindformerError
        from ...versions import versions
        from ..local.compare import compile_text
        from ..reports.estimate import find_network
        from ..session.parties import PartiesError, numbered

        entry = find(protocol)
        if entry.parties not in (None, parties):
            others = " or ".join(of_parties())
            raise PartiesError(f"--parties {parties}: protocol {protocol} has {entry.parties}; use --protocol {others}")
        among = numbered(parties)
        chosen_network = find_network(network, None if rtt is None else rtt / 1e3, bandwidth and bandwidth * 1e6)
        chosen = read_plan(plan) if plan else None
        phases.note("load", "the model")
        loaded = load(model)
        chosen = own_plan(loaded) if chosen is None else chosen
        images = loaded.kind == "image"
        texts = None if images else read_texts(calibrate)
        length = 0 if images else length
        if loaded.positions is not None and length > loaded.positions:
            raise BlindformerError(f"length {length}: the model takes {loaded.positions} tokens; lower --length")
        phases.end("load")
        phases.begin("compile", COMPILE_NOTES)
        options: dict[str, Any] = {"embedding": embedding, "stage": lambda stage: phases.note("compile", stage)}
        if images:
            compiled = compile_images(loaded, [calibrate] if calibrate else None, chosen, **options)
        else:
            compiled = compile_text(loaded, length, chosen, texts=texts, **options)
        phases.end("compile")
        phases.begin("rehearse")
        found = resolve(entry.price)(compiled, chosen_network, among)
        phases.end("rehearse")
    if form is Format.json:
        head = {"model": model, "length": length, "plan": compiled.plan.name, "protocol": protocol}
        emit({**head, **asdict(found), "versions": versions()})
    elif entry.parties:
        _show(loaded.name, length, compiled.plan.name, protocol, found)
    else:
        _show_many(loaded.name, length, compiled.plan.name, protocol, found)


def _size(length: int) -> str:
    return f"length {length}" if length else "an image"


def _show_many(name: str, length: int, plan: str, protocol: str, found: Any) -> None:
    out, size = console(), len(found.sent)
    out.print(f"[bold]{name}[/]   {_size(length)}   plan {plan}   protocol {protocol}   {size} parties\n")
    rows = table("party", "sends MB", "receives MB", right=(1, 2))
    for party in found.sent:
        rows.add_row(party, f"{found.sent[party] / MB:.2f}", f"{found.received[party] / MB:.2f}")
    out.print(rows)
    out.print(
        f"\nonline   {found.online_bytes / MB:.1f} MB in all, {found.rounds} rounds whatever the number of parties\n"
        f"offline  {found.offline_bytes / MB:.1f} MB from the dealer to the first party\n"
        f"set-up   {found.setup_bytes / MB:.1f} MB of masked weights, once, from the first party to the others\n"
        "seconds are not estimated for this protocol"
    )


def _show(name: str, length: int, plan: str, protocol: str, found: Any) -> None:
    out = console()
    out.print(f"[bold]{name}[/]   {_size(length)}   plan {plan}   protocol {protocol}   network {found.network}\n")
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
    spent = {role: sum(s for name, s in found.compute_s.items() if name.startswith(role)) for role in ROLES}
    busy = ", ".join(f"{role} {seconds:.2f} s" for role, seconds in spent.items())
    out.print(
        "\n(layers share rounds, so their rounds add up to more than the total)\n"
        f"network  {found.network}: {found.rtt_s * 1e3:g} ms there and back, "
        f"{found.bandwidth / 1e6:g} Mbit/s each way\n"
        f"online   about {found.online_s:.2f} s: {found.up / MB:.1f} MB up, {found.down / MB:.1f} MB down, "
        f"{found.rounds} rounds\n"
        f"offline  about {found.offline_s:.2f} s: {found.offline_bytes / MB:.1f} MB from the dealer\n"
        f"set-up   about {found.setup_s:.2f} s: {found.setup_bytes / MB:.1f} MB of masked weights, once\n"
        f"compute  {busy}, as measured on this machine; a thread and a core for each"
    )
