"""The user's own labelled texts: the tables that reading.py reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dataset import PARTS, DataError, RawExamples
from .reading import TABLES, bad_rows, choose, choose_joined, columns, joined, rows

LABELS = ("label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "y")
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip
_MOST_CLASSES = 1000
SKIP = ", or give --skip-bad"


def read_file(
    path: Path,
    text: str | None = None,
    label: str | None = None,
    encoding: str | None = None,
    skip_bad: bool = False,
) -> RawExamples:
    """Rows of a table. A column `split` (train, validation, test) is kept to. `encoding`: see `reading.rows`.

    text        its column, or several with commas, whose values are joined
    skip_bad    leave rows out that cannot be read

    Errors: DataError that names all these rows by their lines.
    """
    if path.suffix.lower() not in TABLES:
        raise DataError(f"{path}: is no table of texts and labels; give one that ends in {', '.join(TABLES)}")
    texts, labels, parts, bad = [], [], [], []
    chosen: list[str] = []
    if names := columns(path, encoding):
        chosen = choose_joined(str(path), names, text)
        label = choose(str(path), names, label, LABELS, "label")
        for line, row, error in rows(path, encoding, [name for name in names if name in (*chosen, label, "split")]):
            value, part = joined(row, chosen), SPLITS.get(str(row.get("split")).strip().lower())
            if error is None and (value is None or row.get(label) in (None, "")):
                error = DataError(f"lacks {chosen[0]!r} or {label!r}; fill it in, or remove the line")
            elif error is None and part is None and "split" in row:
                error = DataError(f"split {row['split']!r} is none of {', '.join(PARTS)}")
            if error is not None:
                bad.append((line, error))
                continue
            texts.append(value)
            labels.append(row[label])
            parts += [part] if part else []
    if bad and not skip_bad:
        raise bad_rows(str(path), bad, SKIP)
    if not texts:
        raise DataError(f"{path}: holds no examples; give rows with a text and a label")
    indices, class_names = classes(str(path), labels)
    kept = parts if len(parts) == len(texts) else None
    return RawExamples(texts, indices, class_names, kept, (",".join(chosen), str(label)), len(bad))


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
