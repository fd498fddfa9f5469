"""`blindformer estimate MODEL`: what a private query will cost, layer by layer, before anybody runs one."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from typer import Option

from ..registry import DEFAULT, find, of_parties, resolve
from . import options
from .output import MB, console, emit, layer_table, mb, table
from .steps import COMPILE_NOTES, compiler, load_model, loading

ROLES = ("server", "client", "dealer")


def estimate(
    model: options.Model,
    length: Annotated[int, Option(min=1, help="Tokens.")] = 128,
    plan: options.OwnPlan = None,
    network: Annotated[str, Option(help="loopback, lan (0.5 ms, 1 Gbit/s) or wan (40 ms, 100 Mbit/s).")] = "lan",
    rtt: Annotated[float | None, Option(min=0, help="Milliseconds there and back, as doctor says.")] = None,
    bandwidth: Annotated[float | None, Option(min=0.001, help="Mbit/s each way, as doctor says.")] = None,
    protocol: options.Priced = DEFAULT,
    parties: options.Parties = 2,
    calibrate: options.Calibrate = None,
    embedding: options.Embedding = "client",
    form: options.Form = "text",
) -> None:
    """Bytes and rounds of one query, exact, and its seconds on a network. Nothing is sent, and nothing is secret.

    With protocol crypten: bytes of each party, and rounds; no seconds.
    """
    with loading(1) as phases:
        from ...protocols.errors import BlindformerError
        from ...versions import versions
        from ..reports.estimate import find_network
        from ..session.parties import PartiesError, numbered

        entry = find(protocol)
        if entry.parties not in (None, parties):
            others = " or ".join(of_parties())
            raise PartiesError(f"--parties {parties}: protocol {protocol} has {entry.parties}; use --protocol {others}")
        among = numbered(parties)
        chosen_network = find_network(network, None if rtt is None else rtt / 1e3, bandwidth and bandwidth * 1e6)
        loaded, chosen = load_model(phases, model, plan)
        length = length if loaded.task.medium is None else 0
        if loaded.positions is not None and length > loaded.positions:
            raise BlindformerError(f"length {length}: the model takes {loaded.positions} tokens; lower --length")
        make = compiler(phases, loaded, length, chosen, calibrate, embedding=embedding)
        phases.end("load")
        phases.begin("compile", COMPILE_NOTES)
        compiled = make(1)
        phases.end("compile")
        phases.begin("rehearse")
        found = resolve(entry.price)(compiled, chosen_network, among)
        phases.end("rehearse")
    if form == "json":
        head = {"model": model, "length": length, "plan": compiled.plan.name, "protocol": protocol}
        emit({**head, **asdict(found), "versions": versions()})
    elif entry.parties:
        _show(loaded, length, compiled.plan.name, protocol, found)
    else:
        _show_many(loaded, length, compiled.plan.name, protocol, found)


def _size(loaded: Any, length: int) -> str:
    medium = loaded.task.medium
    return f"length {length}" if medium is None else medium.one


def _show_many(loaded: Any, length: int, plan: str, protocol: str, found: Any) -> None:
    out, size = console(), len(found.sent)
    out.print(
        f"[bold]{loaded.name}[/]   {_size(loaded, length)}   plan {plan}   protocol {protocol}   {size} parties\n"
    )
    rows = [(party, mb(found.sent[party]), mb(found.received[party])) for party in found.sent]
    out.print(table("party", "sends MB", "receives MB", right=(1, 2), rows=rows))
    out.print(
        f"\nonline   {found.online_bytes / MB:.1f} MB in all, {found.rounds} rounds whatever the number of parties\n"
        f"offline  {found.offline_bytes / MB:.1f} MB from the dealer to the first party\n"
        f"set-up   {found.setup_bytes / MB:.1f} MB of masked weights, once, from the first party to the others\n"
        "seconds are not estimated for this protocol"
    )


def _show(loaded: Any, length: int, plan: str, protocol: str, found: Any) -> None:
    out, size = console(), _size(loaded, length)
    out.print(f"[bold]{loaded.name}[/]   {size}   plan {plan}   protocol {protocol}   network {found.network}\n")
    out.print(layer_table(found, ("online MB", "offline MB", "million MACs", "rounds")))
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
