"""What the commands that read labelled examples share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

DataOption = Annotated[
    str,
    typer.Option("--data", help="A data set's name, a CSV, TSV or JSON-lines file, or a folder that `datasets` wrote."),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Of the split, and of all else that is drawn.")]
TextColumnOption = Annotated[
    str | None, typer.Option("--text-column", help="The column of the texts (default: by its usual names).")
]
LabelColumnOption = Annotated[
    str | None, typer.Option("--label-column", help="The column of the labels (default: by its usual names).")
]
EncodingOption = Annotated[str, typer.Option("--encoding", help="Of a file of texts.")]
DataFolderOption = Annotated[
    Path | None, typer.Option("--data-folder", help="Where a named data set's files lie, if not in the usual place.")
]


def read_data(data: str, seed: int, folder: Path | None, text: str | None, label: str | None, encoding: str) -> Any:
    """The data set that the options speak of. Errors: DataError."""
    from ...models.data import load_data

    return load_data(data, seed=seed, folder=folder, text=text, label=label, encoding=encoding)
