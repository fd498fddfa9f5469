"""What the commands of long-lived parties share: their options, the settings that these stand for, and the banner."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from typing import Annotated, Any

from rich.console import Console
from rich.markup import escape
from typer import Option

from . import options


@dataclass(frozen=True)
class Service:
    """The options of every service. The first three are shared settings, the others of its own section, by their names
    there."""

    config: options.Config = None
    certs: options.Certs = None
    timeout: options.Silence = None
    listen: options.Listen = None
    sessions: Annotated[int | None, Option(help="Open sessions at most.")] = None
    workers: Annotated[int | None, Option(help="Queries computing at once (default: one for each core).")] = None
    queue: Annotated[int | None, Option(help="Queries that may wait for a worker.")] = None
    share: Annotated[float | None, Option(help="Of the sessions and of the queue, what one certificate may hold.")] = (
        None
    )
    idle: Annotated[float | None, Option(help="Seconds that a session may be silent between two queries.")] = None
    query_seconds: Annotated[float | None, Option(help="Seconds that a query may hold a worker.")] = None
    metrics: Annotated[str | None, Option(help="HOST:PORT for /metrics, /healthz and /readyz (default: none).")] = None
    grace: Annotated[float | None, Option(help="Seconds that running queries have when it is told to stop.")] = None
    log_format: Annotated[
        str | None, Option(click_type=options.one_of("text", "json"), help="text or json, on stderr.")
    ] = None
    # For a program that starts a service for itself (local/services.py).
    lifeline: Annotated[bool | None, Option("--lifeline", hidden=True, help="End when stdin does.")] = None

    @property
    def stdin(self) -> int | None:
        """The file whose end is the service's, if it has one."""
        return 0 if self.lifeline else None

    def flags(self, role: str, **own: Any) -> dict[str, Any]:
        """The settings (parties/config.py) that the options stand for. `own`: the command's own, of its section."""
        shared = {"config", "certs", "timeout", "lifeline"}
        mine = {name: value for name, value in vars(self).items() if name not in shared} | own
        settings = {f"{role}.{name}": value for name, value in mine.items()}
        return {"certificates.folder": self.certs, "session.timeout": self.timeout, **settings}


def show(said: Any) -> None:
    """The banner (service.running.Announcement), on stderr: results go to stdout, and a service has none."""
    from ..service.running import SECURITY_BITS

    limits, out = said.limits, Console(stderr=True, highlight=False, soft_wrap=True)
    until = datetime.datetime.fromtimestamp(said.expires, datetime.UTC)
    days = (said.expires - time.time()) / 86400
    out.print(f"[bold]Blindformer {said.role}[/]   {SECURITY_BITS} bits   mutual TLS 1.3")
    out.print(f"secure against  {said.adversary}")
    out.print(f"with the help of  {said.helpers}")
    out.print(f"serves  {escape(said.about)}")
    for program in said.programs:
        out.print(f"        program {program[:16]}")
    out.print(f"at  {said.address}   certificate good until {until:%Y-%m-%d %H:%M} UTC, {days:.0f} days")
    if said.metrics is not None:
        out.print(f"metrics  http://{said.metrics}/metrics")
    if said.limit:
        out.print(f"limit  {escape(said.limit)}")
    at_once = f"{limits.workers} {'query' if limits.workers == 1 else 'queries'} at once"
    out.print(f"takes  {limits.sessions} sessions, {at_once}, {limits.queue} in the queue\n")
