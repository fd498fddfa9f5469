"""The options that say which labelled examples a command reads, and the data set that they name."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .options import Encoding
from .output import note

Data = Annotated[
    str,
    Option(
        help="The labelled examples: a data set's name (NAME=FOLDER: its files are there), a table (.csv, .tsv, .jsonl,"
        " .parquet), or a folder that the library datasets wrote."
    ),
]
Seed = Annotated[int, Option(min=0, help="The seed of the data's split, and of all else that is drawn at random.")]
TrainedSeed = Annotated[
    int | None,
    Option(
        "--seed",
        min=0,
        help="The seed of the data's split, and of all else that is drawn at random (default: as in training, else 0).",
    ),
]


@dataclass(frozen=True)
class Columns:
    """Where the examples of a data set are found."""

    text_column: Annotated[str | None, Option(help="The column of the texts (default: by its usual names).")] = None
    label_column: Annotated[str | None, Option(help="The column of the labels (default: by its usual names).")] = None
    encoding: Encoding = None

    def read(self, data: str, seed: int | None, trained: Path | None = None) -> Any:
        """The data set that the options speak of. What they leave open is as the model in `trained` was trained with.

        Errors: DataError.
        """
        from ...models.data import check_unseen, load_as_trained, load_data

        names = {"text_column": "text", "label_column": "label", "encoding": "encoding"}
        given = {names[item.name]: getattr(self, item.name) for item in fields(self)
                 if getattr(self, item.name) != item.default}  # fmt: skip
        given |= {} if seed is None else {"seed": seed}
        if trained is None:
            dataset = load_data(data, **given)
        else:
            dataset = load_as_trained(data, trained, **given)
            check_unseen(trained, dataset, quiet=True)  # who judges by it says what cannot be known
        if left := ", ".join(f"{count:,} {reason}" for reason, count in dataset.dropped.items() if count):
            note(f"{dataset.name}: rows left out: {left}")
        return dataset

    def again(self, data: str, reading: Any = None) -> list[str]:
        """Options that name the same data: what a command needs that gets the trained model's folder, which holds the
        rest; or all of its `reading`."""
        options: dict[str, Any] = {}
        if reading is not None:
            encoding = None if reading.encoding == Columns.encoding else reading.encoding
            options |= {"--text-column": reading.text, "--label-column": reading.label, "--encoding": encoding}
            options |= {"--seed": reading.seed or None}
        return ["--data", data, *(word for name, value in options.items() if value for word in (name, str(value)))]
