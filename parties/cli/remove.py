"""`blindformer rm` and `blindformer prune`: room on the disk, from what the cache holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, BadParameter, Option

from . import options
from .output import at_home, mb, note, table, tell
from .steps import cache_folder, loading

if TYPE_CHECKING:
    from ..housekeeping import CacheRemoval

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
    """Remove what the cache holds and nobody can use: of other versions, unfinished, of models that are gone."""
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
    rows = [(item.name, item.why, ", ".join(path.name for path in item.paths[:1])) for item in removal.items]
    summary = {
        "cache": cache,
        "removed": not dry_run,
        "items": [{"name": item.name, "why": item.why, "paths": list(item.paths)} for item in removal.items],
        "shared": removal.shared,
        "bytes": removal.bytes,
        "left": [{"name": item.name, "why": item.why, "paths": list(item.paths)} for item in removal.left],
    }
    if not rows and not removal.shared:
        tell(form, summary, f"nothing to remove in {at_home(cache)}")
        return
    total = f"{'would free' if dry_run else 'freed'} {mb(removal.bytes, 1)} MB of {at_home(cache)}"
    tell(form, summary, table("name", "what", "where", rows=rows), total)
