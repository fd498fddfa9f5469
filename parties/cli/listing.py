"""`blindformer list`: the protocols, approximations and plans that exist."""

from __future__ import annotations

import enum
from typing import Annotated, Any

import typer

from .output import PLANS, PRIVATE_PLANS, Format, FormatOption, Phases, console, emit, table


class What(enum.StrEnum):
    protocols = "protocols"
    approximations = "approximations"
    plans = "plans"


def list_names(
    what: Annotated[What, typer.Argument(help="protocols, approximations or plans.")], form: FormatOption = Format.text
) -> None:
    """List protocols (who is in it, what it protects), approximations (error, needs) or plans (their choices)."""
    with Phases() as phases:
        phases.begin("load")
        rows = {What.protocols: _protocols, What.approximations: _approximations, What.plans: _plans}[what]()
    if form is Format.json:
        emit({what.value: rows})
        return
    if what is What.plans:  # few plans with many choices: one column each
        rows = [{"choice": key, **{row["name"]: row[key] for row in rows}} for key in rows[0] if key != "name"]
    shown = table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        shown.add_row(*(_in_words(value) for value in row.values()))
    console().print(shown)


def _protocols() -> list[dict[str, Any]]:
    from ...protocols.base import available, find

    rows = []
    for name in available():
        try:
            found = find(name)
        except ImportError as error:
            reason = f"not installed: {error.name} is missing"
            rows.append({"name": name, "parties": "", "security": reason, "operations": 0})
            continue
        rows.append(
            {
                "name": name,
                "parties": found.parties,
                "security": found.security,
                "operations": len(found.offers),
            }
        )
    return rows


def _approximations() -> list[dict[str, Any]]:
    from ...approximations import choices

    return [
        {
            "kind": a.kind,
            "name": a.name,
            "largest_error": a.error,
            "on": list(a.domain) if a.domain else None,
            "comparisons": a.comparisons,
            "needs_distillation": a.needs_distillation,
            "options": list(a.options()),
            "source": a.source,
        }
        for a in choices()
    ]


def _plans() -> list[dict[str, Any]]:
    from ...approximations import Plan, kinds

    plans = [Plan.preset(name) for name in PLANS]
    return [
        {
            "name": plan.name,
            "runs_on_secrets": plan.name in PRIVATE_PLANS,
            "needs_distillation": plan.needs_distillation(),
            "linear_bits": plan.linear_bits,
            **{kind: getattr(plan, kind).name for kind in kinds()},
        }
        for plan in plans
    ]


def _in_words(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.2g}"
    if isinstance(value, list):
        return ", ".join(_in_words(item) for item in value)
    return str(value)
