"""The options that say which labelled examples a command reads, and the data set that they name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from .options import Encoding
from .output import note

Data = Annotated[
    str,
    Option(help="Labelled examples: a data set's name (or NAME=FOLDER), a table, or a folder of `datasets`."),
]
Seed = Annotated[int, Option(min=0, help="Seed of the split and of all randomness.")]
TrainedSeed = Annotated[
    int | None,
    Option(
        "--seed",
        min=0,
        help="Seed of the split and of all randomness (default: as in training, else 0).",
    ),
]


@dataclass(frozen=True)
class Columns:
    """Where the examples of a data set are found."""

    text_column: Annotated[
        str | None,
        Option(help="Column of the texts, or several with commas, joined (default: a usual name)."),
    ] = None
    label_column: Annotated[str | None, Option(help="The column of the labels (default: by its usual names).")] = None
    encoding: Encoding = None
    skip_bad: Annotated[
        bool, Option("--skip-bad", help="Leave out rows that cannot be read, such as those without a label.")
    ] = False

    @property
    def of_table(self) -> dict[str, Any]:
        """Those that say how a table is read, as arguments of `load_data`."""
        columns = {"text": self.text_column, "label": self.label_column, "encoding": self.encoding}
        return {**columns, "skip_bad": self.skip_bad}

    def read(self, data: str, seed: int | None, trained: Path | None = None) -> Any:
        """The data set that the options speak of. What they leave open is as the model in `trained` was trained with.

        Errors: DataError.
        """
        from ...models.data import check_unseen, load_as_trained, load_data

        given = {name: value for name, value in self.of_table.items() if value}
        given |= {} if seed is None else {"seed": seed}
        if trained is None:
            dataset = load_data(data, **given)
        else:
            dataset = load_as_trained(data, trained, **given)
            check_unseen(trained, dataset, quiet=True)  # who judges by it says what cannot be known
        return self.noted(dataset)

    def noted(self, dataset: Any) -> Any:
        """The data set, after a line each on columns that were not named and on rows that were left out."""
        reading = dataset.reading
        if reading is not None and reading.text and not (self.text_column and self.label_column):
            note(f"{dataset.name}: texts from {reading.text}, labels from {reading.label}")
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
        words = [word for name, value in options.items() if value for word in (name, str(value))]
        return ["--data", data, *words, *["--skip-bad"] * (reading is not None and reading.skip_bad)]
