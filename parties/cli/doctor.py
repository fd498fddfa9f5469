"""`blindformer doctor`: what is wrong with this party's place in a deployment, and what to do about it."""

from __future__ import annotations

import enum
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from .output import Format, FormatOption, Phases, ServedOption, console, emit, prepare, table

PIPED_WIDTH = 300  # one line a check, for grep


class DoctorParty(enum.StrEnum):
    server = "server"
    client = "client"
    dealer = "dealer"
    helper = "helper"


def doctor(
    config: Annotated[Path | None, typer.Option("--config", help="The deployment's blindformer.toml.")] = None,
    party: Annotated[
        DoctorParty | None, typer.Option("--party", help="Which party this machine is (default: whose key is here).")
    ] = None,
    protocol: ServedOption = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=20, help="How long to measure a bandwidth, each way.")
    ] = 3,
    form: FormatOption = Format.text,
) -> None:
    """Check configuration, certificates, machine and peers; exit code 1 if something is broken."""
    prepare()
    checks: list[Any] = []
    with Phases() as phases:
        phases.begin("examine", 20)
        from ..doctor.examine import examine

        for check in examine(config, None if party is None else party.value, seconds, protocol):
            checks.append(check)
            phases.note("examine", f"after {check.name}")
    broken = any(check.status == "bad" for check in checks)
    if form is Format.json:
        emit({"good": not broken, "checks": [asdict(check) for check in checks]})
    else:
        _show(checks)
    if broken:
        raise typer.Exit(1)


def _show(checks: list[Any]) -> None:
    colours = {"good": "green", "warning": "yellow", "bad": "bold red"}
    rows = table("check", "", "found", "what to do")
    for check in checks:
        status = f"[{colours[check.status]}]{check.status}[/]"
        rows.add_row(check.name, status, escape(check.found), escape(check.fix))  # [session] is no markup
    out = console()
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    out.print(rows)
    bad, warnings = (sum(check.status == status for check in checks) for status in ("bad", "warning"))
    out.print(f"\n{len(checks)} checks, {bad} bad, {warnings} warnings")
