"""The user's own labelled texts: the tables that reading.py reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dataset import PARTS, DataError, RawExamples
from .reading import TABLES, TEXTS, choose, columns, rows

LABELS = ("label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "y")
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip
_MOST_CLASSES = 1000


def read_file(
    path: Path, text: str | None = None, label: str | None = None, encoding: str | None = None
) -> RawExamples:
    """Rows of a table. A column `split` (train, validation, test) is kept to. `encoding`: see `reading.rows`.

    Errors: DataError with the row's line; also for a single row that cannot be read.
    """
    if path.suffix.lower() not in TABLES:
        raise DataError(f"{path}: is no table of texts and labels; give one that ends in {', '.join(TABLES)}")
    texts, labels, parts = [], [], []
    if names := columns(path, encoding):
        text, label = choose(str(path), names, text, TEXTS, "text"), choose(str(path), names, label, LABELS, "label")
        needed = [name for name in names if name in (text, label, "split")]
        for line, row, error in rows(path, encoding, needed):
            if error is not None:
                raise DataError(f"{path}, line {line}: {error}")
            if row.get(text) is None or row.get(label) in (None, ""):
                raise DataError(f"{path}, line {line}: lacks {text!r} or {label!r}; fill it in, or remove the line")
            texts.append(str(row[text]))
            labels.append(row[label])
            if "split" in row:
                part = SPLITS.get(str(row["split"]).strip().lower())
                if part is None:
                    raise DataError(f"{path}, line {line}: split {row['split']!r} is none of {', '.join(PARTS)}")
                parts.append(part)
    if not texts:
        raise DataError(f"{path}: holds no examples; give rows with a text and a label")
    indices, class_names = classes(str(path), labels)
    return RawExamples(texts, indices, class_names, parts if len(parts) == len(texts) else None)


def classes(where: str, labels: Sequence[Any]) -> tuple[list[int], tuple[str, ...]]:
    """Indices and names of labels given as numbers or names. Whole numbers sort by value, names by alphabet."""
    values = [_whole(value) for value in labels]
    if all(isinstance(value, int) for value in values):
        names = [str(v) for v in sorted(set(values))]
    elif any(isinstance(value, float) for value in values):
        raise DataError(f"{where}: its labels are fractions; a classifier needs classes: names or whole numbers")
    else:
        names = sorted({str(v) for v in values})
    if len(names) > _MOST_CLASSES:
        raise DataError(f"{where}: has {len(names)} different labels; is another column the label?")
    index = {name: i for i, name in enumerate(names)}
    return [index[str(value)] for value in values], tuple(names)


def _whole(value: Any) -> int | float | str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        value = value.strip()
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, int | float):
        return int(value) if math.isfinite(value) and int(value) == value else value
    return str(value)


# A folder that the library `datasets` wrote with save_to_disk: one table, or one for each part.


def read_folder(path: Path, text: str | None = None, label: str | None = None) -> RawExamples:
    """Rows of a Dataset or a DatasetDict on disk. Parts by the usual names are kept; unlabelled ones (-1) are left out.

    Errors: DataError.
    """
    if not any((path / name).is_file() for name in ("dataset_info.json", "dataset_dict.json")):
        raise DataError(f"{path}: is no folder that the library datasets wrote (save_to_disk); give one, or a file")
    try:
        from datasets import load_from_disk  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError(f"{path}: reading it needs the library datasets; run: pip install datasets") from None
    try:
        stored = load_from_disk(str(path))
    except Exception as error:  # the library raises many kinds; all mean the same to a user
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0][:200]}); save it again") from None
    tables = dict(stored) if hasattr(stored, "values") else {"": stored}
    texts: list[str] = []
    labels: list[Any] = []
    parts: list[str] = []
    names: list[str] | None = None
    for part, table in tables.items():
        if part and part not in SPLITS:
            continue
        where = f"{path} {part}".strip()
        text_column = choose(where, table.column_names, text, TEXTS, "text")
        label_column = choose(where, table.column_names, label, LABELS, "label")
        names = getattr(table.features[label_column], "names", None) or names
        pairs = zip(table[text_column], table[label_column], strict=True)
        kept = [(t, y) for t, y in pairs if y not in (None, -1)]
        texts += [str(t) for t, _ in kept]
        labels += [y for _, y in kept]
        parts += [SPLITS.get(part, "train")] * len(kept)
    if not texts:
        raise DataError(f"{path}: holds no labelled examples in parts named {', '.join(SPLITS)}")
    if names is not None:
        return RawExamples(texts, [int(y) for y in labels], tuple(names), parts)
    indices, found_names = classes(str(path), labels)
    return RawExamples(texts, indices, found_names, parts)
