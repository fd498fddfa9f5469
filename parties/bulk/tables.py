"""Rows in and answers out, a piece at a time: Parquet, CSV, TSV, JSON lines; texts are also read one a line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

from ...errors import BlindformerError
from ...files import whole_file

READ, WRITTEN = (".parquet", ".csv", ".tsv", ".jsonl", ".txt"), (".parquet", ".csv", ".tsv", ".jsonl")
_TABS = {".csv": ",", ".tsv": "\t"}
_TYPES = {
    "row": "int64",
    "truncated": "int64",
    "score": "float64",
    "embedding": "list",
}  # of a column of answers; of the others: string
Row = str | tuple[str, ...] | None


class BulkError(BlindformerError):
    """A bulk job cannot be begun, or go on."""


def read_rows(file: Path, fields: tuple[str, ...]) -> Iterator[Row]:
    """What to ask, row by row: the text in a column, or the texts in several; None where one is missing.

    Errors: BulkError.
    """
    if file.suffix not in READ:
        raise BulkError(f"{file}: is of no kind that is read; give one of {', '.join(READ)}")
    if not file.is_file():
        raise BulkError(f"{file}: there is no such file; give a table")
    with _explained(file):
        for table in _tables(file, fields):
            missing = [name for name in fields if name not in table.column_names]
            if missing:
                has = ", ".join(table.column_names)
                raise BulkError(f"{file}: has no column {missing[0]!r}; it has {has}: name one with --field")
            columns = [table.column(name).to_pylist() for name in fields]
            for texts in zip(*columns, strict=True):
                said = tuple(text.strip() if isinstance(text, str) else "" for text in texts)
                yield None if not all(said) else said if len(fields) > 1 else said[0]


def count_rows(file: Path, fields: tuple[str, ...]) -> int:
    """Errors: BulkError."""
    if file.suffix == ".parquet":
        with _explained(file):
            from pyarrow import parquet

            next(read_rows(file, fields), None)  # its columns are there
            return parquet.ParquetFile(file).metadata.num_rows
    return sum(1 for _ in read_rows(file, fields))


def write_answers(out: Path, pieces: Iterable[list[dict[str, Any]]], columns: tuple[str, ...]) -> None:
    """All pieces in one file, which is whole when it has its name. Errors: BulkError."""
    with _explained(out), whole_file(out, durable=True) as stream:
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        types = {"int64": pa.int64(), "float64": pa.float64(), "list": pa.list_(pa.float32())}
        if out.suffix in _TABS:
            types["list"] = pa.string()
        schema = pa.schema([(name, types.get(_TYPES.get(name, ""), pa.string())) for name in columns])
        if out.suffix == ".jsonl":
            for piece in pieces:
                for row in piece:
                    stream.write((json.dumps({name: row[name] for name in columns if name in row}) + "\n").encode())
            return
        if out.suffix == ".parquet":
            writer: Any = pyarrow.parquet.ParquetWriter(stream, schema)
        else:
            options = pyarrow.csv.WriteOptions(delimiter=_TABS[out.suffix])
            writer = pyarrow.csv.CSVWriter(stream, schema, write_options=options)
        with writer:
            for piece in pieces:
                rows = [_flat(row) for row in piece] if out.suffix in _TABS else piece
                writer.write_table(pa.Table.from_pylist(rows, schema))


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    return {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}


def _tables(file: Path, fields: tuple[str, ...]) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    if file.suffix == ".parquet":
        source = pyarrow.parquet.ParquetFile(file)
        known = [name for name in fields if name in source.schema_arrow.names]
        if len(known) < len(fields):
            yield source.schema_arrow.empty_table()
        for batch in source.iter_batches(batch_size=4096, columns=known):
            yield pa.Table.from_batches([batch])
    elif file.suffix in _TABS:
        parse = pyarrow.csv.ParseOptions(delimiter=_TABS[file.suffix], newlines_in_values=True)
        convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(fields, pa.string()))
        with pyarrow.csv.open_csv(file, parse_options=parse, convert_options=convert) as reader:
            for batch in reader:
                yield pa.Table.from_batches([batch])
    else:
        with file.open(encoding="utf-8-sig") as lines:
            number = 0
            while some := list(islice(lines, 4096)):
                yield pa.Table.from_pylist(
                    [_of_line(file, number + at, line, fields) for at, line in enumerate(some, 1)]
                )
                number += len(some)


def _of_line(file: Path, number: int, line: str, fields: tuple[str, ...]) -> dict[str, Any]:
    if file.suffix == ".txt":
        return {fields[0]: line}
    with suppress(ValueError, RecursionError):
        row = json.loads(line)
        if isinstance(row, dict) and all(name in row for name in fields):
            return {name: row[name] if isinstance(row[name], str) else None for name in fields}
    raise BulkError(f"{file}, line {number}: is no JSON object with {' and '.join(map(repr, fields))}; see --field")


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    try:
        import pyarrow as pa
    except ImportError:
        raise BulkError("tables need pyarrow; run: pip install 'blindformer[scale]'") from None
    try:
        yield
    except (OSError, UnicodeError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise BulkError(f"{file}: cannot be read or written ({reason})") from None
