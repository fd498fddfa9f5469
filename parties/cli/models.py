"""`blindformer models`: list models, show one, and remove compiled ones from the cache."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, BadParameter, Option
from typer.core import TyperGroup

from . import options
from .commands import CheckedCommand, example
from .inspect import inspect
from .output import at_home, mb, note, print_result, table
from .steps import cache_folder, loading

if TYPE_CHECKING:  # importing it takes seconds
    from ..housekeeping import CacheRemoval, Removable


class ModelCommands(TyperGroup):
    """Without a command, the list."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0][0:1] != "-" or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else ["list", *args])


app = typer.Typer(cls=ModelCommands, help="Models of this machine: list them, show one, remove what is compiled.")


@app.command("list", cls=CheckedCommand, epilog=example("models"))
def list_models(form: options.Form = "text") -> None:
    """List what packages bring and what is compiled, as `blindformer models` does."""
    with loading(notes=1):
        rows, cache = _models(), _cache()
    models = [*rows, *cache["masked"]]
    problems = list(dict.fromkeys(row["problem"] for row in models if row["problem"]))  # said once, below the table
    shown = [_model_in_words(problems, **row) for row in models]
    alike = [f"{row['name']}: {row['likeness']}" for row in models if row["likeness"]]
    listed = table(*(name.replace("_", " ") for name in shown[0]), rows=(row.values() for row in shown))
    footnotes = [*_footnotes(problems), "\n" + "\n".join(alike), _total(**cache["cache"])]
    print_result(form, {"models": rows, **cache}, listed, *footnotes)


app.command("show", cls=CheckedCommand, epilog=example("models show compiled"))(inspect)


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
    lengths = ", ".join(map(str, row.pop("lengths")))
    return {**row, "lengths": lengths, "MB": mb(bytes, 0) if bytes else "", "last used": day, "where": place}


_SECONDS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}
DryRun = Annotated[bool, Option("--dry-run", help="Say what would be removed, and remove nothing.")]


def _seconds(age: str) -> float:
    if (given := re.fullmatch(r"(\d{1,6})([hdw])", age)) is None:
        raise BadParameter(f"{age!r} is no age; give hours, days or weeks, such as 12h, 30d or 4w.")
    return int(given[1]) * _SECONDS[given[2]]


@app.command(cls=CheckedCommand, epilog=example("models rm all-MiniLM-L6-v2"))
def rm(
    names: Annotated[
        list[str], Argument(metavar="NAME...", help="As `blindformer models` has them, or folders there.")
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


@app.command(cls=CheckedCommand, epilog=example("models prune --older 30d"))
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
