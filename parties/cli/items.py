"""What to ask, from arguments, files and standard input; and what to say where there is no answer."""

from __future__ import annotations

import difflib
import io
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import BlindformerError

_PATHS = ("./", "../", "~/", "/")
_STANDARD_INPUT = "standard input"
_NOTHING = "there is nothing to ask: give texts, `--file FILE`, or `-` and texts on standard input"


@dataclass(frozen=True)
class InputItem:
    """A text, a pair of texts, or an image's file.

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


# --- before a model is loaded ------------------------------------------------------------------------------------
def check_asked(words: Sequence[str], files: Sequence[Path]) -> None:
    """What can be seen before the model's kind is known. Errors: BlindformerError, if there is nothing to ask, or no
    such file."""
    if "-" in words or not (words or files or sys.stdin.isatty()):
        content = sys.stdin.buffer.read()
        sys.stdin = io.TextIOWrapper(io.BytesIO(content))  # for whoever reads it then
        if not content.strip():
            raise BlindformerError(f"{_STANDARD_INPUT}: holds no texts; write one a line, or give some as arguments")
    elif not (words or files):
        raise BlindformerError(_NOTHING)
    for file in files:
        if not file.exists():
            raise BlindformerError(f"{file}: cannot be read (No such file or directory); give a file that is there")
    for word in words:
        if word.startswith(_PATHS) and not any(map(str.isspace, word)) and not os.path.exists(word):
            _refuse_path(word)


def check_length(length: str, *names: str) -> None:
    """Errors: BlindformerError for what is neither one of `names` nor a number of tokens."""
    if length not in names and not (length.isascii() and length.isdigit() and int(length)):
        raise BlindformerError(f"--length {length}: give {', '.join(names)} or a number of tokens")


# --- reading ---------------------------------------------------------------------------------------------------------
def read_items(
    kind: str,
    arguments: list[str],
    files: list[Path],
    fields: Sequence[str] | None = None,
    row_id: str | None = None,
    encoding: str | None = None,
) -> list[InputItem]:
    """What to ask a model of this kind: of arguments, files, and standard input. `fields`, `row_id`, `encoding`: of
    files and standard input, see `reading.text_rows`.

    Errors: BlindformerError, if nothing can be asked.
    """
    from ...models.data.reading import text_lines, text_rows
    from ...models.loading.media import MEDIA, media_files

    if kind in MEDIA:
        paths = media_files(kind, [*map(Path, arguments), *files])
        if not paths:
            raise BlindformerError(f"there is nothing to ask: give {MEDIA[kind].word}s' files, or folders of them")
        return [InputItem(str(path), number) for number, path in enumerate(paths, 1)]
    items: list[InputItem] = []

    def take(name: str, rows: Iterator[Any]) -> None:
        items.extend(
            InputItem(row.text, number, name, row.line, row.id, row.error)
            for number, row in enumerate(rows, len(items) + 1)
        )

    def take_standard_input() -> None:
        take(
            _STANDARD_INPUT,
            text_lines(_STANDARD_INPUT, lambda: io.BytesIO(sys.stdin.buffer.read()), fields or (), row_id, encoding),
        )

    for argument in arguments:
        if argument == "-":
            take_standard_input()
        else:
            _refuse_path(argument)
            items.append(InputItem(argument, len(items) + 1))
    for file in files:
        take(str(file), text_rows(file, fields or (), row_id, encoding))
    if not (arguments or files or sys.stdin.isatty()):
        take_standard_input()
    if not items:
        raise BlindformerError(_NOTHING)
    raise_if_all(items, {index: item.error for index, item in enumerate(items) if item.error is not None})
    return items


def paired(kind: str, items: list[InputItem], pairs: list[str]) -> list[InputItem]:
    """Each text with its pair, in order; the texts as they are if there are no pairs. Errors: BlindformerError."""
    from ...models.loading.media import MEDIA

    if not pairs:
        return items
    if kind in MEDIA:
        raise BlindformerError(f"--pair: is for models of texts, and this one takes {MEDIA[kind].word}s; leave it out")
    if any(isinstance(item.value, tuple) for item in items):
        raise BlindformerError("--pair: --field names two columns, which are pairs already; leave one of them out")
    if len(pairs) != len(items):
        raise BlindformerError(f"--pair: {len(pairs)} given for {len(items)} texts; give it once for each text")
    return [replace(item, value=(item.value, pair)) for item, pair in zip(items, pairs, strict=True)]


def shown(item: Any) -> str:
    """What was asked, on a line: a text, an image's file, or a pair of texts."""
    return " | ".join(item) if isinstance(item, tuple) else str(item)


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
