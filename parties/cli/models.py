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

from ...errors import BlindformerError
from ...models.delegated import is_delegated
from . import options
from .commands import CheckedCommand, example
from .output import MB, at_home, console, mb, note, price_table, print_result, table
from .steps import cache_folder, loading, refuse

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
    """List packaged and compiled models, as `blindformer models` does."""
    with loading(notes=1):
        rows, cache = _models(), _cache()
    models = [*rows, *cache["masked"]]
    problems = list(dict.fromkeys(row["problem"] for row in models if row["problem"]))  # said once, below the table
    shown = [_model_in_words(problems, **row) for row in models]
    alike = [f"{row['name']}: {row['likeness']}" for row in models if row["likeness"]]
    listed = table(*(name.replace("_", " ") for name in shown[0]), rows=(row.values() for row in shown))
    footnotes = [*_footnotes(problems), "\n" + "\n".join(alike), _total(**cache["cache"])]
    print_result(form, {"models": rows, **cache}, listed, *footnotes)


def _models() -> list[dict[str, Any]]:
    from ...models.cached import known_models

    return [{**asdict(model), "lengths": list(model.lengths)} for model in known_models(cache_folder())]


def _cache() -> dict[str, Any]:
    """Masked weights, as rows of models, and what all of the cache takes."""
    from ..housekeeping import bytes_on_disk, files_below
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
    return f"\n{mb(bytes, 1)} MB in the cache ({at_home(folder)})"


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


# --- show one ---------------------------------------------------------------------------------------------------------
FIRST = 3  # of many names


@app.command(cls=CheckedCommand, epilog=example("models show compiled"))
def show(
    name: Annotated[
        str,
        Argument(help="A compiled folder, its part, or a name in `blindformer models`."),
    ],
    length: Annotated[int | None, Option(min=0, help="Only this compiled length (default: all).")] = None,
    precision: Annotated[
        bool,
        Option(
            "--precision",
            help="Measure the error of each layer of an encrypted query; takes the whole DIR.",
        ),
    ] = False,
    by: options.By = None,
    form: options.Form = "text",
) -> None:
    """Show a compiled model: versions, plan, what clients receive, and costs by layer."""
    folder = _place(name)
    if is_delegated(folder):
        given = {"--precision": precision or None, "--by": by, "--length": length}
        refuse(given, "is of compiled programs, and this model runs as it is; leave it out")
        _show_delegated(folder, form)
        return
    with loading(notes=1) as phases:
        from ..reports.inspect import inspect as inspected

        inspection = inspected(folder)
        if length is not None:
            inspection.programs = inspection.of_length(length, folder)
        phases.end("load")
        lost = _precision(folder, inspection, phases.step) if precision else {}
    result = {**inspection.to_dict(), **({"precision": lost} if lost else {})}
    print_result(form, result, lambda: _show(inspection, by or "layer"), lambda: _show_precision(lost))


def _place(name: str) -> Path:
    """A folder, or where the model of this name is compiled to. Errors: BlindformerError, if there are several."""
    from ..housekeeping import compiled_folders

    folders = [] if Path(name).exists() else compiled_folders(cache_folder(), name)
    if len(folders) > 1:
        raise BlindformerError(
            f"{name}: is compiled {len(folders)} times; give a folder that `blindformer models` lists"
        )
    return folders[0] if folders else Path(name)


def _show_delegated(folder: Path, form: str) -> None:
    """The groups of layers that are delegated, and the bytes that one row of each sends."""
    with loading(notes=1) as phases:
        from ...models.artifacts.layout import parts_of
        from ...models.delegated.weights import load_weights
        from ..session.delegation import PublicWeights

        part, place = next(iter(parts_of(folder).items()))
        weights = PublicWeights(*load_weights(place, part))
        phases.end("load")
    groups = weights.manifest.layer_groups
    listed = [
        {"layers": [layer.parameter for layer in group.layers], "inputs": group.inputs, "outputs": group.outputs}
        for group in groups
    ]
    result = {"model": weights.manifest.model, "program": weights.manifest.digest, "groups": listed}

    def show() -> None:
        console().print(f"[bold]{weights.about}[/]   program {weights.manifest.digest[:12]}\n")
        rows = [
            (", ".join(layer.parameter for layer in group.layers), str(group.inputs), str(group.outputs))
            for group in groups
        ]
        console().print(table("layers that read one input", "inputs", "outputs", right=(1, 2), rows=rows))
        inputs, outputs = sum(group.inputs for group in groups), sum(group.outputs for group in groups)
        console().print(
            f"\na token: {len(groups)} rounds, {4 * inputs / MB:.2f} MB to the server, {4 * outputs / MB:.2f} MB back, "
            f"{4 * outputs / MB:.2f} MB from the dealer ahead"
        )

    print_result(form, result, show)


def _show_precision(lost: dict[int, list[dict[str, Any]]]) -> None:
    for number, layers in lost.items():
        title = f"\n{_encrypted(number)}: largest value and error of each layer, and the bits in between"
        rows = [
            (row["path"] or "(model)", f"{row['size']:.3g}", f"{row['error']:.1e}", f"{row['bits']:.1f}")
            for row in layers
        ]
        console().print(table("layer", "largest", "error", "bits", title=title, right=(1, 2, 3), rows=rows))


def _precision(folder: Path, inspection: Any, progress: Any) -> dict[int, list[dict[str, Any]]]:
    from ..reports.inspect import precision

    lost = {}
    for done, number in enumerate(item.length for item in inspection.programs):
        progress("precision", done, len(inspection.programs))
        lost[number] = [{**vars(row), "bits": row.bits} for row in precision(folder, number)]
    return lost


def _show(report: Any, by: str) -> None:
    from ...approximations.registry import A_ROUND

    out = console()
    kind = f"   {report.kind}" if report.kind else ""
    worth = f"   a round is worth {report.a_round:,.0f} numbers" if report.a_round not in (0, A_ROUND) else ""
    out.print(
        f"[bold]{report.name}[/]{kind}   plan {report.plan or 'named in other parts'} ({report.plan_hash[:12]})"
        f"{worth}\n"
    )
    parts = [
        (
            name,
            mb(part.bytes, 1),
            part.files,
            f"format {part.format}, {', '.join(f'{package} {number}' for package, number in part.versions.items())}",
        )
        for name, part in report.parts.items()
    ]
    out.print(table("part", "MB", "files", "written by", right=(1, 2), rows=parts))
    out.print(f"\nreleased to clients  {', '.join(report.released) or 'nothing'}")
    if report.public_weights:
        names = ", ".join(report.public_weights[:FIRST])
        more = " ..." if len(report.public_weights) > FIRST else ""
        out.print(f"open to all parties  {len(report.public_weights)} parameters: {names}{more}")
    out.print(f"public               {report.public}")
    out.print(f"private              {report.private}\n")
    programs = [
        (
            which(item),
            item.hash[:12],
            item.instructions,
            item.rounds,
            mb(item.online_bytes),
            mb(item.offline_bytes),
            f"{item.macs / 1e6:.1f}",
            mb(item.setup_bytes, 1),
        )
        for item in report.programs
    ]
    if report.slots:
        read = f", of which each reads the last {report.window}" if report.window else ""
        writes = any(item.behind is None for item in report.programs)  # one that reads a source
        room = "answers of {} tokens" if writes else "conversations of {} tokens after the prefix"
        out.print(f"{room.format(report.slots)}{read}; by tokens of a pass:\n")
    headings = ("length", "program", "instructions", "rounds", "online MB", "offline MB", "million MACs", "set-up MB")
    out.print(table(*headings, right=(0, *range(2, 8)), rows=programs))
    for item in report.programs:
        tokens = "" if report.kind == "speech" and item.behind is None else " tokens"
        above = f"\n{which(item)}{tokens}" if item.length else ""
        out.print(price_table(item, by, ("rounds", "online MB", "offline MB", "million MACs", "share"), above))
    show_circuits(out, report, layers=True)
    out.print(f"\n(share: of all bytes. {by.capitalize()}s share rounds: theirs add up to more than the total)")


def show_circuits(out: Any, report: Any, layers: bool) -> None:
    """The costs of encrypted queries, if the folder is compiled for them."""
    from ...models.loading.media import word_of_kind

    circuits = {item.length: item.circuit for item in report.programs if item.circuit}
    if not circuits:
        return
    rows = [
        (
            _length(length),
            *(item.texts, item.degree, item.scale_bits, item.depth, item.rotations),
            *map(mb, (item.key_bytes, item.key_memory_bytes, item.request_bytes, item.reply_bytes)),
        )
        for length, item in circuits.items()
    ]
    sizes = ("keys MB", "in memory MB", "request MB", "reply MB")
    headings = ("length", f"{word_of_kind(report.kind)}s", "N", "scale", "levels", "rotations", *sizes)
    title = "\nencrypted queries (ckks), at most"
    out.print(table(*headings, title=title, right=range(10), rows=rows))
    for length, item in circuits.items() if layers else ():
        levels = [(path or "(model)", own, after) for path, own, after in item.levels]
        title = f"\n{_encrypted(length)}"
        out.print(table("layer", "levels", "used up", title=title, right=(1, 2), rows=levels))


def which(item: Any) -> str:
    """Which of the programs it is."""
    return _length(item.length) if item.behind is None else f"{item.length} behind at most {item.behind}"


def _encrypted(number: int) -> str:
    return f"{number} tokens, encrypted" if number else "encrypted"


def _length(number: int) -> str:
    return str(number) if number else "-"


# --- remove -----------------------------------------------------------------------------------------------------------
_SECONDS = {"h": 3600.0, "d": 86400.0, "w": 604800.0}
DryRun = Annotated[bool, Option("--dry-run", help="Only print what would be removed.")]


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
        Option(help="Only this compiled length (default: all). May be repeated."),
    ] = None,
    dry_run: DryRun = False,
    form: options.Form = "text",
) -> None:
    """Remove compiled models from the cache, and masked weights of that name."""
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
            help="Also what was unused for 12h, 30d, 4w (default: any age).",
        ),
    ] = None,
    everything: Annotated[bool, Option("--all", help="Remove all that is compiled, and all masked weights.")] = False,
    dry_run: DryRun = False,
    form: options.Form = "text",
) -> None:
    """Remove unusable files from the cache: of other versions, unfinished, or of lost models."""
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
    summary = {"cache": cache, "removed": not dry_run, "bytes": removal.bytes}
    summary |= {"items": listed(removal.items), "left": listed(removal.left)}
    if not rows:
        print_result(form, summary, f"nothing to remove in {at_home(cache)}")
        return
    total = f"{'would free' if dry_run else 'freed'} {mb(removal.bytes, 1)} MB of {at_home(cache)}"
    print_result(form, summary, table("name", "what", "where", rows=rows), total)
