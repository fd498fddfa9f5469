"""`blindformer list`, `rm` and `prune`: list models, protocols and plans; remove compiled models from the cache."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from typer import Argument, BadParameter, Option

from . import options
from .options import PLANS, PRIVATE_PLANS
from .output import at_home, mb, note, print_result, table
from .steps import cache_folder, loading

if TYPE_CHECKING:  # importing it takes seconds
    from ..housekeeping import CacheRemoval, Removable


def list_names(
    what: Annotated[
        Literal["models", "protocols", "approximations", "plans"],
        Argument(metavar="WHAT", help="What is listed: models, protocols, approximations or plans."),
    ],
    form: options.Form = "text",
) -> None:
    """List models of this machine (what packages bring, what is compiled), protocols (who is in it, what it protects),
    approximations (error, needs) or plans (their choices)."""
    listed = {"models": _models, "protocols": _protocols, "approximations": _approximations, "plans": _plans}
    with loading(notes=1):
        rows = listed[what]()
        cache = _cache() if what == "models" else {}
    listing = {what: rows, **cache}
    if what == "plans":  # few plans with many choices: one column each
        rows = [{"choice": key, **{row["name"]: row[key] for row in rows}} for key in rows[0] if key != "name"]
    elif what == "models":
        models = [*rows, *cache["masked"]]
        problems = list(dict.fromkeys(row["problem"] for row in models if row["problem"]))  # said once, below the table
        rows = [_model_in_words(problems, **row) for row in models]
    headings = (name.replace("_", " ") for name in rows[0])
    listed_rows = table(*headings, rows=(map(_in_words, row.values()) for row in rows))
    if what != "models":
        print_result(form, listing, listed_rows)
        return
    alike = [f"{row['name']}: {row['likeness']}" for row in models if row["likeness"]]
    print_result(form, listing, listed_rows, *_footnotes(problems), "\n" + "\n".join(alike), _total(**cache["cache"]))


def _models() -> list[dict[str, Any]]:
    from ...models.cached import known_models

    return [{**asdict(model), "lengths": list(model.lengths)} for model in known_models(cache_folder())]


def _cache() -> dict[str, Any]:
    """Masked weights, as rows of models, and what all of the cache takes."""
    from ...models.artifacts.sharing import bytes_on_disk
    from ..housekeeping import files_below
    from ..session.weight_transfer import masked_models

    folder = cache_folder()
    rows = [
        {
            **{"name": one.name, "task": "masked weights", "plan": "", "lengths": []},
            **{
                "bytes": bytes_on_disk(one.files),
                "where": one.folder or str(folder),
                "used": one.used,
                "problem": "",
                "likeness": "",
            },
        }
        for one in masked_models(folder)
    ]
    return {"masked": rows, "cache": {"folder": folder, "bytes": bytes_on_disk(files_below([folder]))}}


def _total(folder: Path, bytes: int) -> str:
    if not bytes:
        return f"\nthe cache ({at_home(folder)}) is empty: models are compiled into it at their first use"
    return f"\n{mb(bytes, 1)} MB in the cache ({at_home(folder)}); what models have in common is counted once"


def _footnotes(problems: Sequence[str]) -> list[str]:
    lines = (f"({number}) {problem}" for number, problem in enumerate(problems, 1))
    return ["\n" + "\n".join(lines)] if problems else []


def _model_in_words(
    problems: Sequence[str], bytes: int, where: str, used: float | None, problem: str, likeness: str, **row: Any
) -> dict[str, Any]:
    place = f"{at_home(where)} ({1 + problems.index(problem)})" if problem else at_home(where)
    day = "" if used is None else f"{datetime.datetime.fromtimestamp(used, datetime.UTC):%Y-%m-%d}"
    return {**row, "MB": mb(bytes, 0) if bytes else "", "last used": day, "where": place}


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
        about = {"parties": protocol.parties, "security": protocol.security, "operations": len(protocol.offers)}
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


_SECONDS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}
DryRun = Annotated[bool, Option("--dry-run", help="Say what would be removed, and remove nothing.")]


def _seconds(age: str) -> float:
    if (given := re.fullmatch(r"(\d{1,6})([hdw])", age)) is None:
        raise BadParameter(f"{age!r} is no age; give hours, days or weeks, such as 12h, 30d or 4w.")
    return int(given[1]) * _SECONDS[given[2]]


def rm(
    names: Annotated[
        list[str], Argument(metavar="NAME...", help="As `blindformer list models` has them, or folders there.")
    ],
    length: Annotated[
        list[int] | None,
        Option(help="Remove only what is compiled for so many tokens (default: all lengths). May be repeated."),
    ] = None,
    dry_run: DryRun = False,
    form: options.Form = "text",
) -> None:
    """Remove models that were compiled into the cache, and servers' masked weights of that name."""
    with loading(notes=1):
        from ..housekeeping import removal_of

        cache = cache_folder()
        removal = removal_of(cache, names, length or ())
    _finish(cache, removal, dry_run, form)


def prune(
    older: Annotated[
        float | None,
        Option(
            parser=_seconds,
            metavar="AGE",
            help="Remove, too, what was not used for so long: 12h, 30d, 4w (default: however old).",
        ),
    ] = None,
    everything: Annotated[bool, Option("--all", help="Remove all that is compiled, and all masked weights.")] = False,
    dry_run: DryRun = False,
    form: options.Form = "text",
) -> None:
    """Remove unusable files from the cache: of other versions, unfinished, or of models that are gone."""
    with loading(notes=1):
        from ..housekeeping import leftovers

        cache = cache_folder()
        removal = leftovers(cache, older, everything)
    _finish(cache, removal, dry_run, form)


def _finish(cache: Path, removal: CacheRemoval, dry_run: bool, form: str) -> None:
    from ..housekeeping import remove

    if not dry_run:
        remove(removal)
    for item in removal.left:
        note(f"{item.paths[0]}: is left, since it {item.why}; move that away first")

    def listed(items: list[Removable]) -> list[dict[str, Any]]:
        return [{"name": item.name, "why": item.why, "paths": list(item.paths)} for item in items]

    rows = [(item.name, item.why, ", ".join(path.name for path in item.paths[:1])) for item in removal.items]
    summary = {"cache": cache, "removed": not dry_run, "shared": removal.shared, "bytes": removal.bytes}
    summary |= {"items": listed(removal.items), "left": listed(removal.left)}
    if not rows and not removal.shared:
        print_result(form, summary, f"nothing to remove in {at_home(cache)}")
        return
    total = f"{'would free' if dry_run else 'freed'} {mb(removal.bytes, 1)} MB of {at_home(cache)}"
    print_result(form, summary, table("name", "what", "where", rows=rows), total)
