"""`blindformer query --write-known FILE`: answers that are known, to mix among real queries later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...errors import BlindformerError
from .items import InputOptions
from .output import print_result, table
from .progress import Phases


def write_known_answers(phases: Phases, client: Any, inputs: InputOptions, out: Path, form: str) -> None:
    """Each text of --file is asked three times at least, and 32 queries are asked for each length at least: they show
    how far honest answers are apart."""
    from ..client.known_answers import make_known, write_known

    items = inputs.read(client.part.kind, [])
    for item in items:
        if item.error is not None:
            raise BlindformerError(f"{item.where}: {item.error}")
    phases.end("load")
    known = make_known(client, [item.value for item in items])
    try:
        write_known(out, known)
    except OSError as error:
        raise BlindformerError(f"--write-known {out}: cannot be written ({error.strerror})") from None
    lengths = {answer.length: answer.tolerance for answer in known}
    rows = ((number or "", name, f"{off:.2g}") for number, row in lengths.items() for name, off in row.items())
    result = {"out": out, "answers": len(known), "tolerance": lengths}
    summary = f"{out}: {len(known)} known answers to {len(items)} inputs"
    print_result(form, result, table("tokens", "output", "tolerance", right=(0, 2), rows=rows), summary)
