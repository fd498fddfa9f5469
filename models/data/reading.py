"""Rows of files, one at a time: tables (CSV, TSV, JSON lines, Parquet), and files of texts, one a line.

Every command reads its files here, so a file means the same to all of them.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ...errors import first_line
from .dataset import DataError

SEPARATED, OBJECTS, PARQUET = (".csv", ".tsv", ".tab"), (".jsonl", ".ndjson", ".json"), ".parquet"
TABLES = (*SEPARATED, *OBJECTS, PARQUET)
TEXTS = ("text", "sentence", "review", "content", "body", "message", "document", "comment", "title")
IDS = ("id", "key", "uuid", "guid", "nr")
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
          (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))  # fmt: skip
_UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that `surrogateescape` has let pass
_HALVES = re.compile("[\ud800-\udfff]")  # JSON may write half of a character
BAD_SHOWN = 10  # rows that an error names
_FIRST = 64  # objects whose fields count as columns
_LONGEST = 1 << 24  # characters of a field: a quote that is never closed must not fill the memory
_END = "\0"  # which no line holds


class TableRow(NamedTuple):
    """Values by column, or why the row cannot be read.

    line    where it begins, from 1; the header and empty lines count. Rows of Parquet, which has no lines, are counted
    """

    line: int
    values: dict[str, Any]
    error: DataError | None = None


class TextRow(NamedTuple):
    """A text to ask, or several that are read together; or why the row cannot be asked. `id`: the table's own."""

    line: int
    text: str | tuple[str, ...]
    id: int | str | None = None
    error: DataError | None = None


Lines = Iterator[tuple[int, str, DataError | None]]
"""(number from 1, the line with what ends it, why it cannot be decoded)"""


def columns(file: Path, encoding: str | None = None) -> list[str]:
    """Names of a table's columns; of JSON lines the first objects' fields; of an empty one none. Errors: DataError."""
    kind = file.suffix.lower()
    if kind == PARQUET:
        with _parquet(file) as table:
            return table.schema_arrow.names
    if kind in SEPARATED:
        for line, header, error in _records(file, encoding):
            if error is not None:
                raise DataError(f"{file}, line {line}: {error}")
            return header
        return []
    first = list(islice(rows(file, encoding), _FIRST))
    names = dict.fromkeys(name for row in first for name in row.values)
    if first and not names:
        raise DataError(f"{file}, line {first[0].line}: {first[0].error or 'has no fields'}")
    return list(names)


def rows(file: Path, encoding: str | None = None, names: Sequence[str] | None = None) -> Iterator[TableRow]:
    """Rows of a table; of another file its lines, as the column `text`. Empty ones are left out.

    encoding   None: as the first bytes say, else UTF-8; the first line that is not ends the reading. Of an encoding
               that is given, such a line is an error of its row
    names      columns that are needed (None: all)

    Errors: DataError.
    """
    kind = file.suffix.lower()
    if kind == PARQUET:
        with _parquet(file) as table:
            batches = table.iter_batches(4096, columns=names)
            for line, values in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1):
                yield TableRow(line, values)
    elif kind in SEPARATED:
        records = _records(file, encoding)
        for _, header, _ in islice(records, 1):
            yield from (_row(header, *record) for record in records)
    else:
        yield from (_objects if kind in OBJECTS else _texts)(_lines_of(file, encoding))


def choose(
    where: str, names: Sequence[str], given: str | None, usual: tuple[str, ...], what: str, remedy: str = ""
) -> str:
    """The column that is named, or else the only one of a usual name. Errors: DataError that lists what there is."""
    remedy = remedy or f"name one with --{what}-column"
    likely = [name for name in dict.fromkeys(names) if name.strip().lower() in usual]
    if given is None and len(likely) != 1:
        listed = f"{' or '.join(likely)}" if likely else f"It has {', '.join(names)}"
        raise DataError(f"{where}: which column is the {what}? {listed}; {remedy}")
    column = likely[0] if given is None else given
    if names.count(column) > 1:
        raise DataError(f"{where}: has {names.count(column)} columns {column!r}; rename all but one")
    if column not in names:
        raise DataError(f"{where}: has no column {column!r}; it has {', '.join(names)}: {remedy}")
    return column


def choose_joined(where: str, names: Sequence[str], given: str | None) -> list[str]:
    """The columns of a text: the one that is named or has a usual name, or several, named with commas. Errors:
    DataError."""
    remedy = "name one with --text-column, or several with commas, to join them"
    return [
        choose(where, names, part, TEXTS, "text", remedy)
        for part in ([None] if given is None else _parts(names, given))
    ]


def _parts(names: Sequence[str], given: str) -> list[str]:
    return [given] if given in names else [part.strip() for part in given.split(",")]


def joined(values: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The values of a row's columns, a line each; None if it has none of them."""
    texts = [str(values[name]) for name in names if values.get(name) is not None]
    return "\n".join(filter(str.strip, texts)) if texts else None


def bad_rows(where: str, errors: Sequence[tuple[int, object]], remedy: str = "") -> DataError:
    """One line for all rows, (line, why), that cannot be read: the first ones are named. `remedy`: another way out."""
    if len(errors) == 1:
        return DataError(f"{where}, line {errors[0][0]}: {errors[0][1]}{remedy}")
    lines: dict[str, list[str]] = {}
    for line, error in errors[:BAD_SHOWN]:
        lines.setdefault(str(error).partition(";")[0], []).append(str(line))
    reasons = [f"line{'s' * (len(some) > 1)} {', '.join(some)}: {reason}" for reason, some in lines.items()]
    more = f"; and {len(errors) - BAD_SHOWN:,} more" if len(errors) > BAD_SHOWN else ""
    return DataError(f"{where}: {len(errors):,} bad rows: {'; '.join(reasons)}{more}; repair them{remedy}")


def _usual(names: Sequence[str], usual: tuple[str, ...]) -> str | None:
    return next((column for name in usual for column in names if column.strip().lower() == name), None)


# --- what to ask -----------------------------------------------------------------------------------------------------
def text_rows(
    file: Path,
    fields: Sequence[str] = (),
    row_id: str | None = None,
    encoding: str | None = None,
    remedy: str = "name one with --field",
    trained: str | None = None,
) -> Iterator[TextRow]:
    """What to ask, row by row. A file that is no table holds texts, one a line; with `fields` JSON lines.

    fields     the column with the text, or two of texts that are read together (default: as `trained`, else by its
               usual names)
    trained    the columns that the model was trained on; if they were joined, several `fields` are joined, too
    row_id     the column that names a row (default: by its usual names, if there is one)

    Errors: DataError.
    """
    if file.suffix.lower() not in TABLES:
        yield from text_lines(str(file), partial(file.open, "rb"), fields, row_id, encoding, trained)
        return
    where = str(file)
    names, chosen = text_columns(file, fields, encoding, remedy, trained)
    if row_id is not None:
        row_id = choose(where, names, row_id, IDS, "id", "name one with --id")
    else:
        row_id = _usual([name for name in names if name not in chosen], IDS)
    needed = [name for name in names if name in (*chosen, row_id)]
    yield from _asked(where, rows(file, encoding, needed), chosen, row_id or "", trained)


def text_columns(
    file: Path,
    fields: Sequence[str] = (),
    encoding: str | None = None,
    remedy: str = "name one with --field",
    trained: str | None = None,
) -> tuple[list[str], list[str]]:
    """All columns of a table, and those that `text_rows` reads as texts. Errors: DataError."""
    names = columns(file, encoding)
    if trained and names and not fields and (trained in names or "," in trained):
        fields = _parts(names, trained)
    chosen = [choose(str(file), names, field, TEXTS, "text", remedy) for field in fields or ([None] if names else [])]
    return names, chosen


def text_lines(
    name: str,
    opened: Callable[[], BinaryIO],
    fields: Sequence[str] = (),
    row_id: str | None = None,
    encoding: str | None = None,
    trained: str | None = None,
) -> Iterator[TextRow]:
    """The same of lines without a table's name: texts, or with `fields` JSON objects. Errors: DataError."""
    lines = _lines(name, opened, encoding)
    yield from _asked(
        name, _objects(lines) if fields else _texts(lines), fields or TEXTS[:1], row_id or IDS[0], trained
    )


def whole_text(option: str, file: Path, encoding: str | None = None) -> str:
    """A file that is one text, as an option names it. Errors: DataError."""
    name, parts = f"{option} {file}", []
    for number, part, error in _lines(name, partial(file.open, "rb"), encoding):
        if error is not None:
            raise DataError(f"{name}, line {number}: {error}")
        parts.append(part)
    return "".join(parts).replace("\r\n", "\n").replace("\r", "\n")


_KINDS = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}  # no texts


def _asked(
    name: str, source: Iterator[TableRow], fields: Sequence[str], row_id: str, trained: str | None
) -> Iterator[TextRow]:
    if "," in (trained or "") and len(fields) > 1:
        of_both, whole = fields, ",".join(fields)
        source = (row._replace(values={**row.values, whole: joined(row.values, of_both)}) for row in source)
        fields = [whole]
    if len(fields) > 2:
        raise DataError(f"{name}: {len(fields)} columns are named; name one, or two whose texts are read together")
    row = None
    for row in source:
        values, error = row.values, row.error
        texts = [values.get(field, 0) for field in fields]  # 0: no text
        if error is None:
            if wrong := [field for field, text in zip(fields, texts, strict=True) if not isinstance(text, str | None)]:
                has = ", ".join(values) or "none"
                what = _KINDS.get(type(values.get(wrong[0])), "no text")
                error = DataError(f"has {what} in field {wrong[0]!r}; it has {has}: name one with --field")
            elif not all(text and text.strip() for text in texts):
                error = DataError("a text is empty: write something, or leave it out")
            elif any(_HALVES.search(text) for text in texts):
                error = DataError("a text holds half of a character (\\ud800 to \\udfff); repair it")
        together = tuple(text.strip() for text in texts) if error is None else ("", "")
        yield TextRow(row.line, together if len(fields) > 1 else together[0], _plain(values.get(row_id)), error)
    if row is None:
        raise DataError(f"{name}: holds no texts; there is nothing to ask")


def _plain(value: Any) -> int | str | None:
    """An identifier as JSON and a column of 64 bits take it."""
    if value is None or (type(value) is int and value.bit_length() < 64):
        return value
    return _HALVES.sub("?", str(value))


# --- kinds of files --------------------------------------------------------------------------------------------------
def _lines_of(file: Path, encoding: str | None) -> Lines:
    return _lines(str(file), partial(file.open, "rb"), encoding)


def _lines(name: str, opened: Callable[[], BinaryIO], encoding: str | None) -> Lines:
    codec, number = encoding or "utf-8", 0
    try:
        with io.BufferedReader(opened()) as stream:  # pyright: ignore[reportArgumentType]
            mark, codec = stream.peek(4), encoding or "utf-8"
            if encoding is None:
                codec = next((codec for known, codec in _MARKS if mark.startswith(known)), codec)
            decoder = "utf-8-sig" if codecs.lookup(codec).name == "utf-8" else codec
            # Only newlines end a line: texts hold U+0085, U+2028 and form feeds, which end no line of a table.
            for number, line in enumerate(io.TextIOWrapper(stream, decoder, "surrogateescape", newline=""), start=1):
                error, at = None, f"{name}, line {number}"
                if _END in line:
                    raise DataError(
                        f"{at}: is not text in {codec}; name its encoding with --encoding utf-16, or another"
                    )
                if not line.isascii() and _UNDECODED.search(line):
                    error = DataError(f"is not {codec}; name the file's encoding with --encoding cp1252, or convert it")
                    if encoding is None:
                        raise DataError(f"{at}: {error}")
                yield number, line, error
    except LookupError:
        raise DataError(
            f"--encoding {encoding}: is not known; give utf-8, utf-16, cp1252, latin-1 or the like"
        ) from None
    except UnicodeError:
        raise DataError(
            f"{name}, after line {number}: is not {codec}; name the file's encoding with --encoding"
        ) from None
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror}); give a file that can") from None


def _texts(lines: Lines) -> Iterator[TableRow]:
    for number, line, error in lines:
        if text := line.strip():
            yield TableRow(number, {TEXTS[0]: text}, error)


def _objects(lines: Lines) -> Iterator[TableRow]:
    """Of JSON lines."""
    for number, line, error in lines:
        values: Any = {}
        if not line.strip():
            continue
        if error is None:
            try:
                values = json.loads(line)
                if not isinstance(values, dict):
                    values, error = {}, DataError('is no JSON object; write one such as {"text": ...}')
            except (ValueError, RecursionError):
                error = DataError('is not JSON; write an object such as {"text": ...}')
        yield TableRow(number, values, error)


def _records(file: Path, encoding: str | None) -> Iterator[tuple[int, list[str], DataError | None]]:
    """(line where it begins, its fields, why it cannot be read) of CSV and TSV, the header first."""
    csv.field_size_limit(_LONGEST)
    errors: list[DataError] = []

    def decoded() -> Iterator[str]:
        for _, line, error in _lines_of(file, encoding):
            if error is not None:
                errors.append(error)
            yield line
        yield _END  # a record of its own, unless a quote is open

    lines = decoded()
    header = next(lines)
    names = re.sub('"[^"]*"', "", header)
    delimiter = "\t" if file.suffix.lower() != ".csv" else max(",;\t|", key=names.count)
    reader, end, fields = csv.reader(chain([header], lines), delimiter=delimiter), 0, []
    while fields != [_END]:
        begin = end + 1
        try:
            fields = next(reader)
            if fields != [_END] and fields and fields[-1].endswith(_END):
                errors.append(DataError("has a quote that is never closed; close it"))
        except csv.Error as error:
            errors.append(DataError(f"{error}; repair the line"))
        except StopIteration:
            return
        end = reader.line_num
        if fields != [_END] and (errors or any(field.strip() for field in fields)):
            yield begin, fields, errors[0] if errors else None
        errors.clear()


def _row(header: list[str], line: int, fields: list[str], error: DataError | None) -> TableRow:
    if error is None and any(fields[len(header) :]):
        error = DataError("has more fields than the first line has names; put texts with separators in double quotes")
    return TableRow(line, dict(zip(header, fields, strict=False)), error)


def parquet_module() -> Any:
    """pyarrow.parquet. Errors: DataError."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise DataError("Parquet needs pyarrow; run: pip install 'blindformer[scale]'") from None
    return parquet


@contextmanager
def _parquet(file: Path) -> Iterator[Any]:
    module = parquet_module()
    from pyarrow import ArrowException

    try:
        with module.ParquetFile(file) as table:
            yield table
    except (OSError, ArrowException) as error:
        raise DataError(f"{file}: cannot be read ({first_line(error)}); give a Parquet file") from None
