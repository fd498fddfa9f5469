"""`blindformer list`: the models of this machine, and the protocols, approximations and plans that exist."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument

from . import options
from .options import PLANS, PRIVATE_PLANS
from .output import mb, table, tell
from .steps import loading


def list_names(
    what: Annotated[
        str,
        Argument(
            **options.one_of("models", "protocols", "approximations", "plans"),
            help="What is listed: models, protocols, approximations or plans.",
        ),
    ],
    form: options.Form = "text",
) -> None:
    """List models of this machine (what packages bring, what is compiled), protocols (who is in it, what it protects),
    approximations (error, needs) or plans (their choices)."""
    listed = {"models": _models, "protocols": _protocols, "approximations": _approximations, "plans": _plans}
    with loading(notes=1):
        rows = listed[what]()
    told = {what: rows}
    if what == "plans":  # few plans with many choices: one column each
        rows = [{"choice": key, **{row["name"]: row[key] for row in rows}} for key in rows[0] if key != "name"]
    elif what == "models":
        rows = [_model_in_words(**row) for row in rows]
    headings = (name.replace("_", " ") for name in rows[0])
    tell(form, told, table(*headings, rows=(map(_in_words, row.values()) for row in rows)))


def _models() -> list[dict[str, Any]]:
    from ...models.cached import known_models
    from ..config import load_settings

    found = known_models(load_settings().client.cache.expanduser())
    return [{**asdict(model), "lengths": list(model.lengths)} for model in found]


def _model_in_words(bytes: int, where: str, problem: str, **row: Any) -> dict[str, Any]:
    told = [where.replace(str(Path.home()), "~", 1), problem]
    return {**row, "MB": mb(bytes, 0) if bytes else "", "where": ": ".join(filter(None, told))}


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
        about = {"parties": found.parties, "security": found.security, "operations": len(found.offers)}
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
