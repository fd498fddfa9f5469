"""What the commands of long-lived parties share: their options, the settings that these stand for, and the banner."""

from __future__ import annotations

import datetime
import enum
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape


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

OWN: dict[str, Any] = {
    "listen": ListenOption,
    "sessions": Annotated[int | None, typer.Option("--sessions", help="Open sessions at most.")],
    "workers": Annotated[
        int | None, typer.Option("--workers", help="Queries computing at once (default: one for each core).")
    ],
    "queue": Annotated[int | None, typer.Option("--queue", help="Queries that may wait for a worker.")],
    "share": Annotated[
        float | None, typer.Option("--share", help="Of the sessions and of the queue, what one certificate may hold.")
    ],
    "idle": Annotated[
        float | None, typer.Option("--idle", help="Seconds that a session may be silent between two queries.")
    ],
    "query_seconds": Annotated[
        float | None, typer.Option("--query-seconds", help="Seconds that a query may hold a worker.")
    ],
    "metrics": Annotated[
        str | None, typer.Option("--metrics", help="HOST:PORT for /metrics, /healthz and /readyz (default: none).")
    ],
    "grace": Annotated[
        float | None, typer.Option("--grace", help="Seconds that running queries have when it is told to stop.")
    ],
    "log_format": Annotated[LogFormat | None, typer.Option("--log-format", help="text or json, on stderr.")],
}
"""By their names in [server], [dealer] and [helper] of a configuration."""

OPTIONS: dict[str, Any] = {
    "config": ConfigOption,
    "certs": CertsOption,
    "timeout": TimeoutOption,
    **OWN,
    # For a program that starts a service for itself (client_local.py).
    "lifeline": Annotated[bool | None, typer.Option("--lifeline", hidden=True, help="End when stdin does.")],
}


@dataclass(frozen=True)
class Given:
    """What of OPTIONS a command was given."""

    role: str
    values: dict[str, Any]

    @property
    def config(self) -> Path | None:
        return self.values["config"]

    @property
    def lifeline(self) -> int | None:
        return 0 if self.values["lifeline"] else None

    def flags(self, **own: Any) -> dict[str, Any]:
        """The settings (parties/config.py) that the options stand for. `own`: the command's own, of its section."""
        mine = {**{name: self.values[name] for name in OWN}, **own}
        form = mine["log_format"]
        mine["log_format"] = None if form is None else form.value
        shared = {"certificates.folder": self.values["certs"], "session.timeout": self.values["timeout"]}
        return {**shared, **{f"{self.role}.{name}": value for name, value in mine.items()}}


def service_command(command: Callable[..., None]) -> Callable[..., None]:
    """A command, named as its role, with its own options and those of every service, which it is `given` first."""
    _, *own = inspect.signature(command, eval_str=True).parameters.values()
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in OPTIONS.items()
    ]

    def run(**values: Any) -> None:
        command(Given(command.__name__, {name: values.pop(name) for name in OPTIONS}), **values)

    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    return run


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
