"""`blindformer serve`, and what it shares with `blindformer dealer`: options of a long-lived party, and its banner."""

from __future__ import annotations

import datetime
import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from ..heap import keep_freed_memory
from .output import Door, prepare


class LogFormat(enum.StrEnum):
    text = "text"
    json = "json"


ConfigOption = Annotated[Path | None, typer.Option("--config", help="The deployment's blindformer.toml.")]
CertsOption = Annotated[
    Path | None, typer.Option("--certs", help="The folder of ca.pem and this party's certificate and key.")
]
ListenOption = Annotated[str | None, typer.Option("--listen", help="HOST:PORT to listen at; port 0 takes a free one.")]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", help="Seconds of silence after which a peer counts as dead.")
]
SessionsOption = Annotated[int | None, typer.Option("--sessions", help="Open sessions at most.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", help="Queries computing at once (default: one for each core).")
]
QueueOption = Annotated[int | None, typer.Option("--queue", help="Queries that may wait for a worker.")]
ShareOption = Annotated[
    float | None, typer.Option("--share", help="Of the sessions and of the queue, what one certificate may hold.")
]
IdleOption = Annotated[
    float | None, typer.Option("--idle", help="Seconds that a session may be silent between two queries.")
]
QuerySecondsOption = Annotated[
    float | None, typer.Option("--query-seconds", help="Seconds that a query may hold a worker.")
]
MetricsOption = Annotated[
    str | None, typer.Option("--metrics", help="HOST:PORT for /metrics, /healthz and /readyz (default: none).")
]
GraceOption = Annotated[
    float | None, typer.Option("--grace", help="Seconds that running queries have when it is told to stop.")
]
LogFormatOption = Annotated[LogFormat | None, typer.Option("--log-format", help="text or json, on stderr.")]

# For a program that starts a service for itself (client_local.py).
LifelineOption = Annotated[bool, typer.Option("--lifeline", hidden=True, help="End when stdin does.")]


def serve(
    folder: Annotated[Path | None, typer.Argument(help="The server's part of a compiled folder.")] = None,
    protocol: Annotated[
        Door | None, typer.Option("--protocol", help="beaver: sessions with a dealer; ckks: encrypted queries.")
    ] = None,
    config: ConfigOption = None,
    certs: CertsOption = None,
    listen: ListenOption = None,
    dealer: Annotated[str | None, typer.Option("--dealer", help="HOST:PORT of the dealer.")] = None,
    topology: Annotated[
        str | None, typer.Option("--topology", help="dealer, or helper: a second server takes the client's seat.")
    ] = None,
    timeout: TimeoutOption = None,
    sessions: SessionsOption = None,
    workers: WorkersOption = None,
    queue: QueueOption = None,
    share: ShareOption = None,
    idle: IdleOption = None,
    query_seconds: QuerySecondsOption = None,
    spool: Annotated[Path | None, typer.Option("--spool", help="Keep correlations made ahead in this folder.")] = None,
    keys_gb: Annotated[
        float | None, typer.Option("--keys-gb", help="ckks: what clients' evaluation keys may take on disk.")
    ] = None,
    keys_memory_gb: Annotated[
        float | None, typer.Option("--keys-memory-gb", help="ckks: what they may take in a worker's memory.")
    ] = None,
    keys_seconds: Annotated[
        float | None, typer.Option("--keys-seconds", help="ckks: seconds of no use after which keys are gone.")
    ] = None,
    weights_memory_gb: Annotated[
        float | None, typer.Option("--weights-memory-gb", help="ckks: what encoded weights may take there.")
    ] = None,
    query_processes: Annotated[
        int | None, typer.Option("--query-processes", help="ckks: processes that share one query (default: 1).")
    ] = None,
    metrics: MetricsOption = None,
    grace: GraceOption = None,
    log_format: LogFormatOption = None,
    lifeline: LifelineOption = False,
    any_ring: Annotated[bool, typer.Option("--any-ring", hidden=True, help="FOR TESTS: below 128 bits.")] = False,
) -> None:
    """Serve a compiled model to many clients at once, until Ctrl-C or SIGTERM; SIGHUP reads the certificates again."""
    prepare()
    keep_freed_memory()
    from ..config import load_settings
    from ..doors import service

    flags = service_flags(
        "server", certs, timeout, listen=listen, folder=folder, spool=spool, sessions=sessions, workers=workers,
        queue=queue, share=share, idle=idle, query_seconds=query_seconds, metrics=metrics, grace=grace,
        log_format=log_format, keys_gb=keys_gb, keys_memory_gb=keys_memory_gb, keys_seconds=keys_seconds,
        weights_memory_gb=weights_memory_gb, query_processes=query_processes,
    )  # fmt: skip
    shared = {
        "session.protocol": None if protocol is None else protocol.value,
        "session.topology": topology,
        "parties.dealer.address": dealer,
    }
    settings = load_settings(config, **shared, **flags)
    options: dict[str, Any] = {"more": ["--any-ring"]} if any_ring else {}
    service(settings.session.protocol)(
        settings, show if settings.server.log_format == "text" else None, 0 if lifeline else None, **options
    )


def service_flags(role: str, certs: Path | None, timeout: float | None, **own: Any) -> dict[str, Any]:
    """The settings (parties/config.py) that these options stand for. `own`: those of [server] or [dealer]."""
    form = own.pop("log_format")
    own["log_format"] = None if form is None else form.value
    shared = {"certificates.folder": certs, "session.timeout": timeout}
    return {**shared, **{f"{role}.{name}": value for name, value in own.items()}}


def show(said: Any) -> None:
    """The banner (service.running.Announcement), on stderr: results go to stdout, and a service has none."""
    from ..service.running import SECURITY_BITS

    limits, out = said.limits, Console(stderr=True, highlight=False, soft_wrap=True)
    until = datetime.datetime.fromtimestamp(said.expires, datetime.UTC)
    out.print(f"[bold]Blindformer {said.role}[/]   {SECURITY_BITS} bits   mutual TLS 1.3")
    out.print(f"secure against  {said.adversary}")
    out.print(f"with the help of  {said.helpers}")
    out.print(f"serves  {escape(said.about)}")
    for program in said.programs:
        out.print(f"        program {program[:16]}")
    out.print(f"at  {said.address}   certificate good until {until:%Y-%m-%d %H:%M} UTC")
    if said.metrics is not None:
        out.print(f"metrics  http://{said.metrics}/metrics")
    at_once = f"{limits.workers} {'query' if limits.workers == 1 else 'queries'} at once"
    out.print(f"takes  {limits.sessions} sessions, {at_once}, {limits.queue} in the queue\n")
