"""`blindformer list WHAT`: the protocols, approximations or plans that there are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from typer import Argument

from . import options
from .options import PLANS, PRIVATE_PLANS
from .output import print_result, table
from .steps import loading


def list_names(
    what: Annotated[
        Literal["protocols", "approximations", "plans"],
        Argument(metavar="WHAT", help="What is listed: protocols, approximations or plans."),
    ],
    form: options.Form = "text",
) -> None:
    """List protocols, approximations or plans."""
    listed = {"protocols": _protocols, "approximations": _approximations, "plans": _plans}
    with loading(notes=1):
        rows = listed[what]()
    listing = {what: rows}
    if what == "plans":  # few plans with many choices: one column each
        rows = [{"choice": key, **{row["name"]: row[key] for row in rows}} for key in rows[0] if key != "name"]
    headings = (name.replace("_", " ") for name in rows[0])
    print_result(form, listing, table(*headings, rows=(map(_in_words, row.values()) for row in rows)))


def _protocols() -> list[dict[str, Any]]:
    from ...protocols.base import available, find

    rows = []
    for name in available():
        try:
            protocol = find(name)
        except ImportError as error:
            reason = f"not installed: {error.name} is missing"
            rows.append({"name": name, "parties": "", "security": reason, "operations": 0})
            continue
        about = {
            "parties": protocol.parties,
            "security": protocol.security,
            "operations": len(protocol.supported_operations),
        }
        rows.append({"name": name, **about})
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
            "fraction": plan.fraction,
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
