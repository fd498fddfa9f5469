"""What commands write on stdout: tables for readers, or one JSON object."""

from __future__ import annotations

import datetime
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

MB = 1e6


def emit(value: dict[str, Any]) -> None:
    """The one JSON object of `--format json`. Paths and errors are written as they are shown, times in ISO format."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=_plain) + "\n")


def tell(form: str, value: dict[str, Any], *shown: RenderableType | Callable[[], None]) -> None:
    """A result: the one JSON object, or what a reader is shown, or who shows it."""
    if form == "json":
        emit(value)
        return
    for item in shown:
        if callable(item):
            item()
        else:
            console().print(item)


def _plain(value: object) -> str:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, Path | Exception):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def console() -> Console:
    """For results. Wide enough for a table even where nobody looks."""
    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 120)


def aside() -> Console:
    """For what is no result, on stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    aside().print(f"note: {escape(text)}")


def banner(title: str, against: str, helpers: str, lines: Iterable[str]) -> None:
    """Who this party is and what it protects, on stderr: results go to stdout."""
    out = aside()
    out.print(f"[bold]Blindformer {title}   mutual TLS 1.3")
    out.print(f"secure against  {against}")
    out.print(f"with the help of  {helpers}")
    for line in lines:
        out.print(escape(line))
    out.print()


def good_until(expires: float) -> str:
    """Of a certificate. `expires`: seconds since 1970."""
    return f"certificate good until {datetime.datetime.fromtimestamp(expires, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def table(
    *columns: str, title: str | None = None, right: Sequence[int] = (), rows: Iterable[Iterable[object]] = ()
) -> Table:
    """`right`: columns of numbers."""
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*map(str, row))
    return made


def at_home(path: str | Path) -> str:
    """A path with ~ for the user's home, whose name is nobody's matter."""
    return str(path).replace(str(Path.home()), "~", 1)


def show_next(intro: str, *commands: Sequence[object]) -> None:
    """What to run next, as a shell takes it: one command a line, which nothing wraps, so that it can be copied."""
    lines = [shlex.join(["blindformer", *map(str, words)]) for words in commands]
    print("\n".join([f"\n{intro}:", *(f"  {line}" for line in lines)]))


def spare_folder(folder: Path) -> str:
    """Where what is made of `folder` may be compiled to."""
    return "compiled" if not Path("compiled").exists() else f"{folder}-compiled"


def mb(size: float, digits: int = 2) -> str:
    return f"{size / MB:.{digits}f}"


def price_table(found: Any, by: str, columns: Sequence[str], title: str | None = None) -> Table:
    """What each layer or operation of a priced program costs, and all of them. `columns`: some of those below."""
    cells = {
        "rounds": lambda layer: str(layer.rounds),
        "online MB": lambda layer: mb(layer.online_bytes),
        "offline MB": lambda layer: mb(layer.offline_bytes),
        "million MACs": lambda layer: f"{layer.macs / 1e6:.1f}",
        "share": lambda layer: "100.0%" if layer is found else f"{found.share(layer):.1%}",
    }
    listed = found.operations if by == "operation" else found.layers
    named = [(row.path, row) for row in listed] + [("[bold]total[/]", found)]
    rows = ([name, *(cells[column](layer) for column in columns)] for name, layer in named)
    return table(by, *columns, title=title, right=range(1, len(columns) + 1), rows=rows)
