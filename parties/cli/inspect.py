"""`blindformer inspect DIR`: what a compiled folder holds, layer by layer with its price, and who may know what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .output import MB, Format, FormatOption, Phases, console, emit, prepare, table


def inspect(
    folder: Annotated[Path, typer.Argument(help="What compile wrote: DIR, DIR/server or DIR/client.")],
    length: Annotated[
        int | None, typer.Option("--length", min=0, help="Show the layers of this length only (default: of all).")
    ] = None,
    precision: Annotated[
        bool,
        typer.Option(
            "--precision", help="Encrypted queries: measure what each layer loses. Needs DIR, with both parts."
        ),
    ] = False,
    form: FormatOption = Format.text,
) -> None:
    """Show a compiled folder: versions, plan, what is released, and the price of a query by layer."""
    prepare()
    with Phases() as phases:
        phases.begin("load")
        from ...models.artifacts.layout import only
        from ..reports.inspect import inspect as inspected

        found = inspected(folder)
        if length is not None:
            only(found.lengths, length, folder)
            found.lengths = {length: found.lengths[length]}
        phases.end("load")
        lost = _precision(folder, found, phases.step) if precision else {}
    if form is Format.json:
        emit({**found.to_dict(), **({"precision": lost} if lost else {})})
        return
    _show(found)
    for number, layers in lost.items():
        title = f"\n{_length(number)} tokens, encrypted: largest value and error of each layer, and the bits in between"
        rows = table("layer", "largest", "error", "bits", title=title, right=(1, 2, 3))
        for row in layers:
            rows.add_row(row["path"] or "(model)", f"{row['size']:.3g}", f"{row['error']:.1e}", f"{row['bits']:.1f}")
        console().print(rows)


def _precision(folder: Path, found: Any, progress: Any) -> dict[int, list[dict[str, Any]]]:
    from ..reports.precision import precision

    lost = {}
    for done, number in enumerate(found.lengths):
        progress("precision", done, len(found.lengths))
        lost[number] = [{**vars(row), "bits": row.bits} for row in precision(folder, number)]
    return lost


def _show(found: Any) -> None:
    out = console()
    kind = f"   {found.kind}" if found.kind else ""
    out.print(f"[bold]{found.name}[/]{kind}   plan {found.plan or 'named in other parts'} ({found.plan_hash[:12]})\n")
    rows = table("part", "MB", "files", "written by", right=(1, 2))
    for name, part in found.parts.items():
        wrote = ", ".join(f"{package} {number}" for package, number in part.versions.items())
        rows.add_row(name, f"{part.bytes / MB:.1f}", str(part.files), f"format {part.format}, {wrote}")
    out.print(rows)
    out.print(f"\nreleased to clients  {', '.join(found.released) or 'nothing'}")
    out.print(f"public               {found.public}")
    out.print(f"private              {found.private}\n")
    rows = table(
        "length", "program", "instructions", "rounds", "online MB", "offline MB", "million MACs", "set-up MB",
        right=(0, 2, 3, 4, 5, 6, 7),
    )  # fmt: skip
    for item in found.lengths.values():
        rows.add_row(
            _length(item.length),
            item.hash[:12],
            str(item.instructions),
            str(item.rounds),
            f"{item.online_bytes / MB:.2f}",
            f"{item.offline_bytes / MB:.2f}",
            f"{item.macs / 1e6:.1f}",
            f"{item.setup_bytes / MB:.1f}",
        )
    out.print(rows)
    for item in found.lengths.values():
        title = f"\n{item.length} tokens" if item.length else ""
        rows = table(
            "layer", "rounds", "online MB", "offline MB", "million MACs", "share", title=title, right=(1, 2, 3, 4, 5)
        )
        for layer in item.layers:
            rows.add_row(
                layer.path,
                str(layer.rounds),
                f"{layer.online_bytes / MB:.2f}",
                f"{layer.offline_bytes / MB:.2f}",
                f"{layer.macs / 1e6:.1f}",
                f"{item.share(layer):.1%}",
            )
        rows.add_row(
            "[bold]total[/]",
            str(item.rounds),
            f"{item.online_bytes / MB:.2f}",
            f"{item.offline_bytes / MB:.2f}",
            f"{item.macs / 1e6:.1f}",
            "100.0%",
        )
        out.print(rows)
    show_circuits(out, found, layers=True)
    out.print("\n(share: of all bytes. Layers share rounds, so their rounds add up to more than the total)")


def show_circuits(out: Any, found: Any, layers: bool) -> None:
    """What encrypted queries take, where a folder is compiled for them."""
    circuits = {length: item.circuit for length, item in found.lengths.items() if item.circuit}
    if not circuits:
        return
    rows = table(
        "length", "texts", "N", "scale", "levels", "rotations", "keys MB", "in memory MB", "request MB", "reply MB",
        title="\nencrypted queries (ckks), at most", right=(0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    )  # fmt: skip
    for length, item in circuits.items():
        sizes = (item.key_bytes, item.key_memory_bytes, item.request_bytes, item.reply_bytes)
        numbers = (item.texts, item.degree, item.scale_bits, item.depth, item.rotations)
        rows.add_row(_length(length), *map(str, numbers), *(f"{size / MB:.2f}" for size in sizes))
    out.print(rows)
    for length, item in circuits.items() if layers else ():
        rows = table("layer", "levels", "used up", title=f"\n{_length(length)} tokens, encrypted", right=(1, 2))
        for path, own, after in item.levels:
            rows.add_row(path or "(model)", str(own), str(after))
        out.print(rows)


def _length(number: int) -> str:
    return str(number) if number else "-"
