"""What a model was trained on: kept beside its weights, so that it is judged by rows that it has not seen.

Of the rows themselves digests are kept, of many at once: nobody can try out whether a text was among them.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from .dataset import DataError, Dataset, Reading

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
    name = f"{setting} column" if setting in ("text", "label") else setting
    return f"no {name}" if value is None else f"{name} {value}"


def content_of(path: Path) -> str:
    """SHA-256 of a file, or of all in a folder."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in files if file.is_file()]
    return hashlib.sha256(b"".join(digests)).hexdigest() if path.is_dir() else digests[0].hex()


def rows_digest(inputs: list[str] | Tensor) -> str:
    """SHA-256 of texts, or of images uint8 [N, H, W], in their order."""
    digest = hashlib.sha256()
    for row in inputs:
        content = row.numpy().tobytes() if isinstance(row, Tensor) else row.encode("utf-8", "surrogatepass")
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
