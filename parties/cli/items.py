"""The inputs of a query, from arguments, files and standard input; and the lines for inputs without an answer."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ...errors import BlindformerError
from ...models.loading.packaged import check_name
from . import options
from .commands import Without
from .output import note

_PATHS = ("./", "../", "~/", "/")
_STANDARD_INPUT = "standard input"
_NOTHING = "there is nothing to ask: give texts, `--file FILE`, or `-` and texts on standard input"


@dataclass(frozen=True)
class InputItem:
    """A text, a pair of texts, or the file of an image or a recording.

    number       its place in all that is asked, from 1
    file, line   where a text was read; the line is that of reading.TableRow
    id           of the table's own, if it has one
    error        why it cannot be asked
    """

    value: Any
    number: int
    file: str = ""
    line: int = 0
    id: int | str | None = None
    error: BlindformerError | None = None

    @property
    def place(self) -> dict[str, Any]:
        """How JSON names its place."""
        place = {"file": self.file, "line": self.line} if self.file else {}
        return {"number": self.number, **place, **({} if self.id is None else {"id": self.id})}

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.line}" if self.file else f"input {self.number}"


@dataclass(frozen=True)
class InputOptions:
    """The options that say what is asked, beside a command's words."""

    file: options.Files = None
    field: options.Field = None
    row_id: options.RowId = None
    encoding: options.Encoding = None
    pair: Annotated[options.Pairs, Without("--out")] = None

    def check(self, words: Sequence[str]) -> None:
        """Check what needs no model. Errors: BlindformerError, if there is nothing to ask, or no such file."""
        if "-" in words or not (words or self.file or sys.stdin.isatty()):
            content = sys.stdin.buffer.read()
            sys.stdin = io.TextIOWrapper(io.BytesIO(content))  # so that `read` finds it
            if not content.strip():
                raise BlindformerError(
                    f"{_STANDARD_INPUT}: holds no texts; write one a line, or give some as arguments"
                )
        elif not (words or self.file):
            raise BlindformerError(_NOTHING)
        for file in self.file or []:
            if not file.exists():
                raise BlindformerError(f"{file}: cannot be read (No such file or directory); give a file that is there")
        for word in words:
            if not os.path.exists(word):
                _refuse_path(word)
        if words and not (self.file or "-" in words):
            if not any(map(str.strip, words)):
                raise BlindformerError("a text is empty: write something, or leave it out")
            self._check_pairs(len(words))

    def read(self, kind: str, words: Sequence[str], trained: str | None = None) -> list[InputItem]:
        """The inputs for a model of this kind: a command's words, files and standard input, each text with its pair.
        `trained`: as of `text_rows`.

        Errors: BlindformerError, if nothing can be asked.
        """
        from ...models.data.reading import text_lines, text_rows
        from ...models.loading.media import MEDIA, media_files

        files = self.file or []
        if kind in MEDIA:
            medium = MEDIA[kind].word
            if self.pair:
                raise BlindformerError(f"--pair: is for models of texts, and this one takes {medium}s; leave it out")
            paths = media_files(kind, [*map(Path, words), *files])
            if not paths:
                raise BlindformerError(f"there is nothing to ask: give {medium}s' files, or folders of them")
            return [InputItem(str(path), number) for number, path in enumerate(paths, 1)]
        items: list[InputItem] = []
        how = (listed(self.field) or (), self.row_id, self.encoding)

        def take(name: str, rows: Iterator[Any]) -> None:
            first = len(items) + 1
            items.extend(InputItem(row.text, n, name, row.line, row.id, row.error) for n, row in enumerate(rows, first))

        def take_standard_input() -> None:
            content = io.BytesIO(sys.stdin.buffer.read())
            take(_STANDARD_INPUT, text_lines(_STANDARD_INPUT, lambda: content, *how, trained))

        for word in words:
            if word == "-":
                take_standard_input()
            else:
                _refuse_path(word)
                items.append(InputItem(word, len(items) + 1))
        for file in files:
            take(str(file), text_rows(file, *how, trained=trained))
            note_columns(file, self.field, self.encoding, trained)
        if not (words or files or sys.stdin.isatty()):
            take_standard_input()
        if not items:
            raise BlindformerError(_NOTHING)
        raise_if_all(items, {index: item.error for index, item in enumerate(items) if item.error is not None})
        return self._paired(items)

    def check_tables(self, trained: str | None) -> None:
        """Read the first row of each table, before anything slow. `trained`: as of `text_rows`. Errors: DataError."""
        from ...models.data.reading import TABLES, text_rows

        for file in self.file or []:
            if file.suffix.lower() in TABLES:
                how = (listed(self.field) or (), self.row_id, self.encoding)
                next(text_rows(file, *how, trained=trained), None)

    def _paired(self, items: list[InputItem]) -> list[InputItem]:
        if not self.pair:
            return items
        if any(isinstance(item.value, tuple) for item in items):
            raise BlindformerError("--pair: --field names two columns, which are pairs already; leave one of them out")
        self._check_pairs(len(items))
        return [replace(item, value=(item.value, pair)) for item, pair in zip(items, self.pair, strict=True)]

    def _check_pairs(self, texts: int) -> None:
        if self.pair and len(self.pair) != texts:
            raise BlindformerError(f"--pair: {len(self.pair)} given for {texts} texts; give it once for each text")


def note_columns(
    file: Path, field: str | None, encoding: str | None = None, trained: str | None = None, option: str = "--field"
) -> None:
    """A line on the columns that a table's texts were read from, if nobody named them and there are others."""
    from ...models.data.reading import IDS, TABLES, text_columns

    if field is None and file.is_file() and file.suffix.lower() in TABLES:
        names, chosen = text_columns(file, (), encoding, trained=trained)
        if left := ", ".join(name for name in names if name not in chosen and name.strip().lower() not in IDS):
            note(f"{file}: texts from {', '.join(chosen)}, not from {left}; {option} names others")


def check_length(length: str, *names: str) -> None:
    """Errors: BlindformerError for what is neither one of `names` nor a number of tokens."""
    if length not in names and not (length.isascii() and length.isdigit() and int(length)):
        raise BlindformerError(f"--length {length}: give {', '.join(names)} or a number of tokens")


def listed(names: str | None) -> list[str] | None:
    """Comma-separated names; None if none are given."""
    return [name.strip() for name in names.split(",") if name.strip()] if names else None


# --- paths that are no texts -----------------------------------------------------------------------------------------
def folder_first(words: list[str], config: Path | None, command: str) -> tuple[Path | None, list[str]]:
    """(folder, the other words). A configuration names a folder, too: the first word then is another one if there is
    such a folder, or if it can only mean one.

    Errors: BlindformerError.
    """
    if words and os.path.isdir(words[0]):
        return Path(words[0]), words[1:]
    if config is None and not words:
        raise BlindformerError(
            f"{command}: give the client's part of a compiled folder first, or --config FILE that names it"
        )
    if config is None or (words and (_is_path(words[0]) or _near(words[0]))):
        meant = "".join(f"; did you mean {name}?" for name in _near(words[0])) or "; give the folder that compile wrote"
        raise BlindformerError(f"{words[0]}: there is no such folder{meant}")
    return None, words


def _refuse_path(text: str) -> None:
    """Errors: BlindformerError for what somebody took for a way to name a file."""
    if not _is_path(text):
        return
    there = f"is no text but a file; say --file {text}" if os.path.exists(text) else "there is no such file"
    raise BlindformerError(f"{text}: {there}; if this word is the text, give `-` and write it to standard input")


def _is_path(word: str) -> bool:
    """Whether a word names a file that is there, or can hardly mean anything else."""
    if not word or any(map(str.isspace, word)):
        return False
    if word.startswith(_PATHS):
        return True
    from ...models.data.reading import TABLES
    from ...models.loading.media import IMAGE_ENDINGS

    ending = os.path.splitext(word)[1].lower()
    return ending in (".txt", *TABLES, *IMAGE_ENDINGS) or (("/" in word or bool(ending)) and os.path.exists(word))


def names_model(word: str) -> bool:
    """Whether a word can only be a model's name or own folder: no compiled folder, and no slip for one that is here.

    Errors: LoadError for a slip for a packaged model.
    """
    config, compiled = (os.path.isfile(os.path.join(word, name)) for name in ("config.json", "client.json"))
    if config and not compiled:  # a client's part may have both
        return True
    if os.path.isdir(word) or _near(word) or any(map(str.isspace, word)):
        return False
    return not _is_path(check_name(word))


def _near(word: str) -> list[str]:
    """A compiled folder here whose name is nearly `word`."""
    parts = ("client/client.json", "client.json")
    folders = [entry.name for entry in os.scandir() if any(os.path.exists(os.path.join(entry, part)) for part in parts)]
    return difflib.get_close_matches(word.rstrip("/").removeprefix("./"), folders, n=1, cutoff=0.8)


# --- what has no answer ----------------------------------------------------------------------------------------------
def raise_if_all(items: Sequence[InputItem], errors: Mapping[int, Exception]) -> None:
    """Errors: BlindformerError if `errors` (by index) has one for every item: that of the last one, after a line on
    stderr for each of the others."""
    if len(errors) == len(items):
        last = max(errors)
        for index in sorted(errors.keys() - {last}):
            complain(items, index, errors[index])
        raise BlindformerError(_of(items, last, errors[last])) from None


def complain(items: Sequence[InputItem], index: int, error: Exception) -> None:
    """A line on stderr for an item that has no answer."""
    print(f"blindformer: {_of(items, index, error)}", file=sys.stderr)


def _of(items: Sequence[InputItem], index: int, error: Exception) -> str:
    item = items[index]
    return f"{item.where}: {error}" if item.file or len(items) > 1 else str(error)
