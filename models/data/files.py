"""The user's own labelled texts: CSV, TSV, or JSON with one object a line."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .dataset import PARTS, DataError, RawExamples

TEXTS = ("text", "sentence", "review", "content", "body", "message", "document", "comment", "title")
LABELS = ("label", "labels", "class", "category", "sentiment", "target", "intent", "topic", "y")
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
          "val": "validation", "dev": "validation", "test": "test"}  # fmt: skip
_MOST_CLASSES = 1000


def read_file(path: Path, text: str | None = None, label: str | None = None, encoding: str = "utf-8") -> RawExamples:
    """Rows of a file. A column `split` (train, validation, test) is kept to.

    Errors: DataError with the file's line.
    """
    rows = list(_objects(path, encoding) if path.suffix.lower() in (".jsonl", ".ndjson", ".json") else
                _table(path, encoding))  # fmt: skip
    if not rows:
        raise DataError(f"{path}: holds no examples; give rows with a text and a label")
    columns = list(rows[0][1])
    text, label = choose(str(path), columns, text, TEXTS, "text"), choose(str(path), columns, label, LABELS, "label")
    texts, labels, parts = [], [], []
    for line, row in rows:
        if text not in row or label not in row or row[text] is None or row[label] in (None, ""):
            raise DataError(f"{path}, line {line}: lacks {text!r} or {label!r}; fill it in, or remove the line")
        texts.append(str(row[text]))
        labels.append(row[label])
        if "split" in row:
            part = SPLITS.get(str(row["split"]).strip().lower())
            if part is None:
                raise DataError(f"{path}, line {line}: split {row['split']!r} is none of {', '.join(PARTS)}")
            parts.append(part)
    indices, names = classes(str(path), labels)
    return RawExamples(texts, indices, names, parts if len(parts) == len(texts) else None)


def choose(where: str, columns: Sequence[str], given: str | None, usual: tuple[str, ...], what: str) -> str:
    """The column that is named, or else the first of the usual names. Errors: DataError that lists what there is."""
    if given is not None:
        if given in columns:
            return given
        raise DataError(f"{where}: has no column {given!r}; it has {', '.join(columns)}")
    for name in usual:
        for column in columns:
            if column.strip().lower() == name:
                return column
    raise DataError(f"{where}: which column is the {what}? It has {', '.join(columns)}; name one with --{what}-column")


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


def _lines(path: Path, encoding: str) -> list[str]:
    """Errors: DataError that says where the encoding fails."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a file that can") from None
    try:
        decoded = raw.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except LookupError:
        raise DataError(f"encoding {encoding!r}: not known; give utf-8, utf-16, latin-1, cp1252 or the like") from None
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        line = raw[:at].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: is not {encoding}; name the file's encoding with --encoding (cp1252, utf-16, ...)"
        ) from None
    if "\0" in decoded:
        raise DataError(f"{path}: is not text in {encoding}; name the file's encoding with --encoding (utf-16, ...)")
    # Not splitlines: texts hold U+0085, U+2028 and form feeds, which end no line of a table.
    return list(io.StringIO(decoded, newline=""))


def _table(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = _lines(path, encoding)
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else _delimiter(lines[0] if lines else "")
    reader = csv.DictReader(lines, delimiter=delimiter, restkey="")
    try:
        for row in reader:
            if row.pop("", None):
                raise DataError(
                    f"{path}, line {reader.line_num}: has more fields than the first line has names; put texts with "
                    f"{delimiter!r} in double quotes"
                )
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}; repair the line") from None


def _delimiter(head: str) -> str:
    return max(",;\t|", key=head.count)  # the first line holds names only


def _objects(path: Path, encoding: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(path, encoding), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: is not JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise DataError(f'{path}, line {number}: is no JSON object; write one like {{"text": ..., "label": ...}}')
        yield number, row
