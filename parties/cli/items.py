"""What to ask, from arguments, files and standard input; and what to say where there is no answer."""

from __future__ import annotations

import difflib
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import BlindformerError

_STANDARD_INPUT = "standard input"
_TABLES = (".jsonl", ".ndjson")  # one JSON object a line
_FIELD = "text"
_PATHS = ("./", "../", "~/", "/")
_NOTHING = "there is nothing to ask: give texts, `--file FILE`, or `-` and texts on standard input"
_TEXT_FILES = (".txt", ".csv", ".tsv", ".json", *_TABLES)


@dataclass(frozen=True)
class InputItem:
    """A text, a pair of texts, or an image's file.

    number       its place in all that was given, from 1; an empty line counts, too
    file, line   where a text was read, the line from 1
    error        why it cannot be asked
    """

    value: Any
    number: int
    file: str = ""
    line: int = 0
    error: BlindformerError | None = None

    @property
    def place(self) -> dict[str, Any]:
        """How JSON names its place."""
        return {"number": self.number, **({"file": self.file, "line": self.line} if self.file else {})}

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
def read_items(kind: str, arguments: list[str], files: list[Path], field: str | None = None) -> list[InputItem]:
    """What to ask a model of this kind: of arguments, files, and standard input.

    Errors: BlindformerError, if nothing can be asked.
    """
    from ...models.loading.media import MEDIA, media_files

    if kind in MEDIA:
        paths = media_files(kind, [*map(Path, arguments), *files])
        if not paths:
            raise BlindformerError(f"there is nothing to ask: give {MEDIA[kind].word}s' files, or folders of them")
        return [InputItem(str(path), number) for number, path in enumerate(paths, 1)]
    found, numbers = [], itertools.count(1)
    for file, lines in _sources(arguments, files):
        named = field or (_FIELD if file.endswith(_TABLES) else None)
        for line, text in enumerate(lines, 1):
            number = next(numbers)
            if not file:
                found.append(InputItem(text, number))
            elif text:
                found.append(_of_line(text, number, file, line, named))
    if not found:
        raise BlindformerError(_NOTHING)
    raise_if_all(found, {index: item.error for index, item in enumerate(found) if item.error is not None})
    return found


def read_lines(file: Path) -> list[str]:
    """Its lines without the space around them, the empty ones too. Errors: BlindformerError, also if all are empty."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BlindformerError(f"{file}: cannot be read ({error.strerror}); give a text file") from None
    return _lines(str(file), content)


def _sources(arguments: list[str], files: list[Path]) -> Iterator[tuple[str, list[str]]]:
    """(file, its lines); an argument is a line of no file."""
    for argument in arguments:
        if argument == "-":
            yield _STANDARD_INPUT, _lines(_STANDARD_INPUT, sys.stdin.buffer.read())
        else:
            _refuse_path(argument)
            yield "", [argument]
    for file in files:
        yield str(file), read_lines(file)
    if not (arguments or files or sys.stdin.isatty()):
        yield _STANDARD_INPUT, _lines(_STANDARD_INPUT, sys.stdin.buffer.read())


def paired(kind: str, items: list[InputItem], pairs: list[str]) -> list[InputItem]:
    """Each text with its pair, in order; the texts as they are if there are no pairs. Errors: BlindformerError."""
    from ...models.loading.media import MEDIA

    if not pairs:
        return items
    if kind in MEDIA:
        raise BlindformerError(f"--pair: is for models of texts, and this one takes {MEDIA[kind].word}s; leave it out")
    if len(pairs) != len(items):
        raise BlindformerError(f"--pair: {len(pairs)} given for {len(items)} texts; give it once for each text")
    return [replace(item, value=(item.value, pair)) for item, pair in zip(items, pairs, strict=True)]


def shown(item: Any) -> str:
    """What was asked, on a line: a text, an image's file, or a pair of texts."""
    return " | ".join(item) if isinstance(item, tuple) else str(item)


def _lines(name: str, content: bytes) -> list[str]:
    try:
        decoded = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BlindformerError(
            f"{name}: is not UTF-8 text (byte {error.start}); convert it, for instance with iconv"
        ) from None
    # Not splitlines: texts hold U+2028 and form feeds, which end no line where lines are counted.
    lines = [line.strip() for line in io.StringIO(decoded, newline=None)]
    if not any(lines):
        raise BlindformerError(f"{name}: holds no texts; write one a line")
    return lines


def _of_line(text: str, number: int, file: str, line: int, field: str | None) -> InputItem:
    """The text of a line, or of its object's field."""
    if field is None:
        return InputItem(text, number, file, line)
    try:
        row = json.loads(text)
        if not isinstance(row, dict):
            wrong = f'is no JSON object; write one such as {{"{field}": ...}}'
        elif isinstance(row.get(field), str):
            return InputItem(row[field], number, file, line)
        else:
            wrong = f"has no text in field {field!r}; it has {', '.join(row) or 'none'}: name one with --field"
    except (ValueError, RecursionError):
        wrong = f'is not JSON; write an object such as {{"{field}": ...}}'
    return InputItem("", number, file, line, BlindformerError(wrong))


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
    from ...models.loading.images import IMAGE_ENDINGS

    ending = os.path.splitext(word)[1].lower()
    return ending in (*_TEXT_FILES, *IMAGE_ENDINGS) or (("/" in word or bool(ending)) and os.path.exists(word))


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
