"""How a source becomes a Dataset: read, cleaned and divided."""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .dataset import (
    PARTS,
    DataError,
    Dataset,
    Examples,
    RawExamples,
    Reading,
    reading_of,
    rows_digest,
    stratified,
)
from .files import SKIP, read_file
from .reading import bad_rows, text_rows
from .registry import DataSource, sources


def load_data(
    what: str | Path,
    *,
    seed: int = 0,
    text: str | None = None,
    label: str | None = None,
    encoding: str | None = None,
    test: float = 0.2,
    validation: float = 0.1,
    skip_bad: bool = False,
) -> Dataset:
    """Load a data set by name, or from a table (CSV, TSV, JSON lines, Parquet).

        data = bf.load_data("tickets.csv", text="subject,body", label="queue")

    what          a name, NAME=FOLDER for its files elsewhere, or a file
    seed          of the split, unless the source has its own
    text, label   columns (default: usual names); several text columns, with commas, are joined
    encoding      of a file (default: by its byte order mark, else UTF-8)
    test          fraction for the final test
    validation    fraction of the rest, for choosing an epoch
    skip_bad      leave out rows that cannot be read (default: raise)

    HTML entities are decoded. Of texts that differ only in case, spaces and punctuation, one is kept.

    Raises DataError.
    """
    known = {one.name: one for one in sources()}
    name, _, place = str(what).partition("=")
    if name in known:
        if known[name].judging:
            raise DataError(f"{name}: is kept for judging, and no model is trained on it; give another data set")
        return split(name, known[name].read(Path(place).expanduser() if place else None), seed, test, validation)
    path = Path(what).expanduser()
    known = {name: one for name, one in known.items() if not one.judging}
    rows = _read_path(path, known, text, label, encoding, skip_bad)
    data = split(path.name, rows, seed, test, validation)
    assert data.reading is not None
    text, label = rows.columns or (text, label)
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    own = replace(data.reading, content=content, text=text, label=label, encoding=encoding, skip_bad=skip_bad)
    return replace(data, reading=own)


def load_texts(
    what: str | Path, *, seed: int = 0, text: str | None = None, encoding: str | None = None, skip_bad: bool = False
) -> Dataset:
    """A data set as of `load_data` whose texts alone count: a table, or a file of texts, one a line, needs no labels.

    text    the columns that a table's texts are in; one that has no such column is read by the usual names

    Errors: DataError.
    """
    path = Path(what).expanduser()
    if str(what).partition("=")[0] in {one.name for one in sources()} or not path.is_file():
        return load_data(what, seed=seed, text=text, encoding=encoding, skip_bad=skip_bad)
    rows = list(text_rows(path, encoding=encoding, remedy="name one with --text-column", trained=text))
    bad = [(row.line, row.error) for row in rows if row.error is not None]
    if bad and not skip_bad:
        raise bad_rows(str(path), bad, SKIP)
    texts = [str(row.text) for row in rows if row.error is None]
    kept, dropped = _clean(RawExamples(texts, [0] * len(texts), ("",), bad=len(bad)))
    if not kept.inputs:
        raise DataError(f"{path}: holds no texts; give some")
    none = Examples([], [])
    return Dataset(path.name, "text", (), Examples(kept.inputs, kept.labels), none, none, dropped)


def judging_texts(what: str, *, folder: str | Path | None = None) -> list[str]:
    """The texts of a data set that nothing is trained on: training takes a `Dataset`, and there is none of it.

    Errors: DataError.
    """
    kept = {one.name: one for one in sources() if one.judging}
    if what not in kept:
        raise DataError(f"{what}: is not kept for judging; give one of {', '.join(kept)}")
    rows, _ = _clean(kept[what].read(None if folder is None else Path(folder)))
    return Examples(rows.inputs, rows.labels).texts


def load_as_trained(what: str | Path, folder: Path, **given: Any) -> Dataset:
    """What `load_data` gives, read and divided as what the model in `folder` was trained on, but for what is `given`.

    Errors: DataError. `check_unseen` says whether it may be judged by that.
    """
    trained = reading_of(folder)
    return load_data(what, **({} if trained is None else trained.settings()) | given)


def _read_path(
    path: Path,
    known: Mapping[str, DataSource],
    text: str | None,
    label: str | None,
    encoding: str | None,
    skip_bad: bool,
) -> RawExamples:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a table (of `datasets`: to_parquet writes one)")
    if path.is_file():
        return read_file(path, text, label, encoding, skip_bad)
    raise DataError(f"{path}: no such file or data set; give a table, or one of {', '.join(known)}")


def split(name: str, rows: RawExamples, seed: int, test: float = 0.2, validation: float = 0.1) -> Dataset:
    """Rows, cleaned and divided. Errors: DataError for empty or single-class data, or a class too small to divide."""
    if not (0 < test < 1 and 0 < validation < 1):
        raise DataError(f"test {test}, validation {validation}: both are shares between 0 and 1")
    content = rows_digest(rows.inputs)
    rows, dropped = _clean(rows)
    counts = Counter(rows.labels)
    if not counts:
        raise DataError(f"{name}: holds no examples; give rows with a text and a label")
    if len(counts) < 2:
        (only,) = counts
        raise DataError(f"{name}: every example is {rows.names[only]!r}; a classifier needs two classes or more")
    examples = Examples(rows.inputs, rows.labels)
    given = rows.parts or ["train"] * len(examples)
    at = {part: [i for i, p in enumerate(given) if p == part] for part in PARTS}
    rest = at["train"]
    for part, share in (("test", test), ("validation", validation)):
        if not at[part]:
            at[part], rest = _divide(examples, rest, share, seed)
    at["train"] = rest
    for part in PARTS:
        missing = set(counts) - {examples.labels[i] for i in at[part]}
        if missing:
            few = min(missing, key=lambda c: counts[c])
            raise DataError(
                f"{name}: class {rows.names[few]!r} has {counts[few]} examples, none of them for {part}; "
                "add some, or leave the class out"
            )
    kind = "image" if isinstance(rows.inputs, Tensor) else "text"
    train, chosen_by, judged_by = (examples.take(at[part]) for part in PARTS)
    reading = Reading(name, content, rows_digest(judged_by.inputs), None, None, None, seed, test, validation)
    return Dataset(name, kind, rows.names, train, chosen_by, judged_by, dropped, reading)


def _divide(examples: Examples, among: list[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    labels = [examples.labels[i] for i in among]
    taken, left = stratified(labels, round(share * len(labels)), seed) if labels else ([], [])
    return [among[i] for i in taken], [among[i] for i in left]


# Cleaning.

_WINDOWS = {code: bytes([code]).decode("cp1252", "ignore") for code in range(0x80, 0xA0)}
"""C1 control characters are Windows-1252 punctuation that was read as Latin-1."""


def cleaned(text: str) -> str:
    """Without HTML entities, doubled spaces, and Windows-1252 punctuation in the guise of control characters."""
    return " ".join(html.unescape(text).translate(_WINDOWS).split())


def _key(text: str) -> str:
    """What two copies of one text have in common; of a text without letters and digits, all of it."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip() or text


def _clean(rows: RawExamples) -> tuple[RawExamples, dict[str, int]]:
    """Rows without empty and repeated inputs; those with several labels go altogether.

    Of repeated ones the first is kept, or the first of the test part, so that nothing judged by was trained on.
    """
    dropped = {"bad": rows.bad, "duplicate": 0, "contradictory": 0, "empty": 0}
    if isinstance(rows.inputs, Tensor):
        inputs: list[str] = []
        keys = [image.numpy().tobytes().hex() for image in rows.inputs]
    else:
        inputs = [cleaned(text) for text in rows.inputs]
        keys = [_key(text) for text in inputs]
    labels_of: dict[str, set[int]] = {}
    first: dict[str, int] = {}
    rank = {part: -number for number, part in enumerate(PARTS)}  # the test part comes first
    parts = rows.parts or ["train"] * len(keys)
    for i, key in enumerate(keys):
        if not key:
            continue
        labels_of.setdefault(key, set()).add(rows.labels[i])
        if key not in first or rank[parts[i]] < rank[parts[first[key]]]:
            first[key] = i
    kept = []
    for i, key in enumerate(keys):
        if not key:
            dropped["empty"] += 1
        elif len(labels_of[key]) > 1:
            dropped["contradictory"] += 1
        elif first[key] != i:
            dropped["duplicate"] += 1
        else:
            kept.append(i)
    chosen = rows.inputs[torch.tensor(kept, dtype=torch.long)] if isinstance(rows.inputs, Tensor) else None
    return (
        RawExamples(
            [inputs[i] for i in kept] if chosen is None else chosen,
            [rows.labels[i] for i in kept],
            rows.names,
            None if rows.parts is None else [rows.parts[i] for i in kept],
        ),
        dropped,
    )
