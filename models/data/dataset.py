"""Examples with labels, and a data set of three parts: to train, to choose by, and to judge by."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...protocols.errors import BlindformerError

PARTS = ("train", "validation", "test")


class DataError(BlindformerError):
    """Data that is missing, cannot be read, or does not fit its use."""


@dataclass(frozen=True, eq=False)
class Examples:
    """Texts, or images uint8 [N, H, W], with class indices."""

    inputs: list[str] | Tensor
    labels: list[int]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def texts(self) -> list[str]:
        """Errors: DataError if these are images."""
        if isinstance(self.inputs, Tensor):
            raise DataError("these examples are images: a text model cannot read them; give texts")
        return self.inputs

    @property
    def items(self) -> list[Any]:
        """One by one: texts, or images [H, W]."""
        return list(self.inputs)

    def take(self, indices: Sequence[int]) -> Examples:
        """The examples at these positions, in this order."""
        labels = [self.labels[i] for i in indices]
        if isinstance(self.inputs, Tensor):
            return Examples(self.inputs[torch.as_tensor(indices, dtype=torch.long)], labels)
        return Examples([self.inputs[i] for i in indices], labels)

    def subset(self, count: int, seed: int = 0) -> Examples:
        """At most `count` of them, stratified and seeded, in the original order."""
        if count >= len(self):
            return self
        return self.take(stratified(self.labels, count, seed)[0])


@dataclass(frozen=True, eq=False)
class RawExamples:
    """What a source holds: texts or images uint8 [N, H, W], their class indices, the classes' names.

    parts    where the source says it: train, validation or test for each row; None leaves the split to us
    columns  of a table: those of the text, with commas, and of the label
    bad      how many rows were left out that could not be read
    """

    inputs: list[str] | Tensor
    labels: list[int]
    names: tuple[str, ...]
    parts: list[str] | None = None
    columns: tuple[str, str] | None = None
    bad: int = 0


@dataclass(frozen=True)
class Reading:
    """How a data set was read and divided, to do it again.

    name       its own, or that of its file or folder, without the path
    content    SHA-256 of the file or folder; of any other source, of its rows
    test_rows  SHA-256 of the test part's texts or images
    text, label  the columns that were read, if it is a table
    the rest   as `load_data` was told
    """

    name: str
    content: str
    test_rows: str
    text: str | None
    label: str | None
    encoding: str | None
    seed: int
    test: float
    validation: float
    skip_bad: bool = False

    def settings(self) -> dict[str, Any]:
        """Arguments of `load_data`."""
        return {name: value for name, value in vars(self).items() if name not in ("name", "content", "test_rows")}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three disjoint parts of one source.

    labels    the classes' names, in the order of their indices
    kind      text or image
    dropped   how many rows were left out, by reason: bad, duplicate, contradictory (one text, several labels), empty
    reading   how it was read; None if it was put together by hand
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    dropped: Mapping[str, int]
    reading: Reading | None = None

    def matched(self, labels: Mapping[int, str]) -> Dataset:
        """The same with a model's class indices. `labels`: its names by index (`config.id2label`).

        Names are matched without regard to case. A model with names of no meaning (LABEL_0, 0), or data whose labels
        are plain numbers, is matched by index. Errors: DataError that names both sides.
        """
        ours, theirs = [_plain(n) for n in self.labels], {_plain(n): i for i, n in labels.items()}
        if set(ours) <= set(theirs):
            to = [theirs[n] for n in ours]
        elif len(labels) == len(ours) and (_numbers(ours) or _numbers(theirs)):
            to = list(range(len(ours)))
        else:
            raise DataError(
                f"{self.name}: its labels are {_list(self.labels)}, the model's are {_list(labels.values())}; "
                "rename those of the data, or give a model for them"
            )
        parts = {
            part: replace(examples, labels=[to[i] for i in examples.labels])
            for part, examples in (("train", self.train), ("validation", self.validation), ("test", self.test))
        }
        return replace(self, labels=tuple(labels[i] for i in sorted(labels)), **parts)


def stratified(labels: Sequence[int], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Positions of `count` examples with every class's share kept, and those of the rest; both in original order.

    What a class's share leaves of a whole number goes to the classes with the largest remainders.
    """
    values = np.asarray(labels)
    classes, sizes = np.unique(values, return_counts=True)
    exact = sizes * (count / len(values))
    wanted = np.floor(exact).astype(int)
    for i in np.argsort(wanted - exact, kind="stable")[: count - int(wanted.sum())]:
        wanted[i] += 1
    random = np.random.default_rng(seed)
    taken = [random.permutation(np.flatnonzero(values == c))[:n] for c, n in zip(classes, wanted, strict=True)]
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.concatenate(taken)] = True
    return np.flatnonzero(chosen).tolist(), np.flatnonzero(~chosen).tolist()


def _plain(name: str) -> str:
    return name.strip().casefold().removeprefix("label_")


def _numbers(names: Sequence[str] | Mapping[str, int]) -> bool:
    return all(name.isdigit() for name in names)


def _list(names: Sequence[str] | object) -> str:
    shown = [str(n) for n in names]  # type: ignore[attr-defined]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


# What a model was trained on: kept beside its weights, so that it is judged by rows that it has not seen.
#
# Of the rows themselves digests are kept, of many at once: nobody can try out whether a text was among them.

FILE = "data.json"
REPORTS = ("head.json", "distillation.json", "federation.json")
"""Beside a model that was trained here: without FILE, before that was kept."""


class TestRowsWarning(UserWarning):
    """Rows of a test may have been trained on."""

    __test__ = False  # pytest takes it for a test


def keep_reading(data: Dataset, folder: Path) -> None:
    """Write how `data`, which a model in `folder` was trained on, was read; of one made in memory nothing is known."""
    if data.reading is not None:
        (folder / FILE).write_text(json.dumps(asdict(data.reading), indent=1) + "\n", encoding="utf-8")


def reading_of(folder: Path) -> Reading | None:
    """What `keep_reading` wrote; None if there is nothing. Errors: DataError."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Reading(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: is damaged ({error}); copy the folder again, or train again") from None


def columns_of(folder: Path) -> str | None:
    """The columns of texts that the model in `folder` was trained on, with commas if they were joined. Errors:
    DataError."""
    reading = reading_of(folder)
    return None if reading is None else reading.text


def check_unseen(folder: Path, data: Dataset, *, quiet: bool = False) -> None:
    """Errors: DataError if the model in `folder` was trained on test rows of `data`: on the same source, divided
    otherwise. TestRowsWarning, unless `quiet`, where that cannot be known: another source, or a folder that does not
    say."""
    trained, now, unknown = reading_of(folder), data.reading, ""
    if now is None:  # who puts a data set together knows its rows
        return
    if trained is None:
        if any((folder / name).is_file() for name in REPORTS):
            unknown = (
                f"{folder}: does not say how its training data was divided; if it was with another seed, test rows of "
                f"{data.name} were trained on"
            )
    elif now.test_rows == trained.test_rows:
        return
    elif now.content != trained.content:
        unknown = (
            f"{data.name}: is not what {folder} was trained on ({trained.name} as it was then); test rows that both "
            "hold may have been trained on"
        )
    else:
        before, other = trained.settings(), now.settings()
        changed = [name for name in before if before[name] != other[name]]
        given = " and ".join(_word(name, other[name]) for name in changed) or "this version"
        remedy = " and ".join(_word(name, before[name]) for name in changed)
        raise DataError(
            f"{data.name}: with {given} rows are tested that {folder} was trained on; "
            + (f"give {remedy}, as in training" if remedy else "give rows of which none was trained on")
        )
    if unknown and not quiet:
        warnings.warn(unknown, TestRowsWarning, stacklevel=3)


def _word(setting: str, value: Any) -> str:
    name = f"{setting} column" if setting in ("text", "label") else setting.replace("_", " ")
    return f"no {name}" if value is None else f"{name} {value}"


def rows_digest(inputs: list[str] | Tensor) -> str:
    """SHA-256 of texts, or of images uint8 [N, H, W], in their order."""
    digest = hashlib.sha256()
    for row in inputs:
        content = row.numpy().tobytes() if isinstance(row, Tensor) else row.encode("utf-8", "surrogatepass")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
