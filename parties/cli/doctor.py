"""`blindformer doctor`: what is wrong with this party's place in a deployment, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, cast

from rich.markup import escape
from typer import Exit, Option

from . import options
from .output import console, table, tell
from .progress import Phases

if TYPE_CHECKING:
    from ..config import Role

PIPED_WIDTH = 300  # one line a check, for grep


def doctor(
    config: options.Config = None,
    party: Annotated[
        str | None,
        Option(
            **options.one_of("server", "client", "dealer", "helper"),
            help="Which party this machine is (default: the one whose key is here).",
        ),
    ] = None,
    protocol: options.Served = None,
    seconds: Annotated[float, Option(min=0.1, max=20, help="Seconds to measure a bandwidth, each way.")] = 3,
    form: options.Form = "text",
) -> None:
    """Check configuration, certificates, machine and peers; exit code 1 if something is broken."""
    checks: list[Any] = []
    with Phases() as phases:
        phases.begin("examine", 20)
        from ..doctor.examine import examine

        for check in examine(config, cast("Role | None", party), seconds, protocol):
            checks.append(check)
            phases.note("examine", f"after {check.name}")
    broken = any(check.status == "bad" for check in checks)
    tell(form, {"good": not broken, "checks": [asdict(check) for check in checks]}, lambda: _show(checks))
    if broken:
        raise Exit(1)


def _show(checks: list[Any]) -> None:
    colours = {"good": "green", "warning": "yellow", "bad": "bold red"}
    rows = [
        (
            check.name,
            f"[{colours[check.status]}]{check.status}[/]",
            escape(check.found),  # [session] is no markup
            escape(check.fix),
        )
        for check in checks
    ]
    out = console()
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    out.print(table("check", "", "found", "what to do", rows=rows))
    bad, warnings = (sum(check.status == status for check in checks) for status in ("bad", "warning"))
    out.print(f"\n{len(checks)} checks, {bad} bad, {warnings} warnings")
