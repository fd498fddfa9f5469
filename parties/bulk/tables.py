"""Tables of answers, written a piece at a time: Parquet, CSV, TSV, JSON lines."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import BlindformerError
from ...files import whole_file
from ...models.data.reading import PARQUET, parquet_module

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
WRITTEN = (PARQUET, *_SEPARATORS, ".jsonl")
Pieces = Iterable[list[dict[str, Any]]]


class BulkError(BlindformerError):
    """A bulk job cannot be begun, or go on."""


def check_kind(out: Path) -> None:
    """Errors: BulkError if no such file can be written; DataError if it needs a library that is missing."""
    if out.suffix not in WRITTEN:
        raise BulkError(f"--out {out}: is of no kind that is written; end it in {', '.join(WRITTEN)}")
    if out.suffix == PARQUET:
        parquet_module()


def write_answers(out: Path, pieces: Pieces, columns: Mapping[str, str]) -> None:
    """All pieces in one file, which is whole when it has its name.

    columns    their names, each with its type: int64, float64, string or list (of float32)

    Errors: BulkError.
    """
    with _explained(out), whole_file(out, durable=True) as stream:
        if out.suffix == PARQUET:
            _write_parquet(stream, pieces, columns)
        else:
            for text in _texts(pieces, columns, _SEPARATORS.get(out.suffix)):
                stream.write(text.encode())


def _texts(pieces: Pieces, columns: Mapping[str, str], separator: str | None) -> Iterator[str]:
    """What stands in a file, JSON lines if there is no separator."""
    if separator is not None:
        yield separator.join(columns) + "\n"
    for piece in pieces:
        text = io.StringIO(newline="")
        if separator is None:
            for row in piece:
                text.write(json.dumps({name: row[name] for name in columns if name in row}) + "\n")
        else:
            writer = csv.writer(text, delimiter=separator, lineterminator="\n")
            writer.writerows([_flat(row.get(name)) for name in columns] for row in piece)
        yield text.getvalue()


def _flat(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list) else value


def _write_parquet(stream: BinaryIO, pieces: Pieces, columns: Mapping[str, str]) -> None:
    import pyarrow as pa

    types = {"int64": pa.int64(), "float64": pa.float64(), "list": pa.list_(pa.float32()), "string": pa.string()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.items()])
    with parquet_module().ParquetWriter(stream, schema) as writer:
        for piece in pieces:
            text_columns = [name for name, kind in columns.items() if kind == "string"]
            rows = [{**row, **{name: _as_text(row.get(name)) for name in text_columns}} for row in piece]
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _as_text(value: Any) -> str | None:
    return None if value is None else str(value)


@contextmanager
def _explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BulkError(f"{out}: cannot be written ({error.strerror})") from None
