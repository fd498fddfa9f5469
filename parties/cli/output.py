"""Output on stdout: tables and answers for readers, or one JSON object."""

from __future__ import annotations

import codecs
import datetime
import json
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:  # importing it takes seconds
    from ..client.result import Result


MB = 1e6


def print_json(value: dict[str, Any]) -> None:
    """The one JSON object of `--format json`. Paths and errors are written as they are shown, times in ISO format."""
    escaped = codecs.lookup(sys.stdout.encoding or "ascii").name != "utf-8"  # which alone has all letters
    sys.stdout.write(json.dumps(value, ensure_ascii=escaped, default=_plain) + "\n")


def print_result(form: str, value: dict[str, Any], *shown: RenderableType | Callable[[], None]) -> None:
    """A result: the one JSON object, or what a reader is shown, or who shows it."""
    if form != "text":
        print_json(value)
        return
    for item in shown:
        if callable(item):
            item()
        else:
            console().print(item, markup=False)  # a path, or an extra such as [speech], is no style


def _plain(value: object) -> str:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, Path | Exception):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def console() -> Console:
    """The console for results. A pipe gets 120 columns."""
    return Console(highlight=False, soft_wrap=False, width=None if sys.stdout.isatty() else 120)


def aside() -> Console:
    """The console for everything else, on stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    aside().print(f"note: {escape(text)}")


def banner(title: str, against: str, helpers: str, together: str, lines: Iterable[str]) -> None:
    """Who this party is, what it protects, and which parties must not collude (empty: none), on stderr: results go to
    stdout."""
    out = aside()
    out.print(f"[bold]Blindformer {title}   mutual TLS 1.3")
    out.print(f"secure against  {against}")
    out.print(f"with the help of  {helpers}")
    for line in ([f"collusion  {together}"] if together else []) + list(lines):
        out.print(escape(line))
    out.print()


def good_until(expires: float) -> str:
    """The expiry of a certificate in words. `expires`: seconds since 1970."""
    return f"certificate good until {datetime.datetime.fromtimestamp(expires, datetime.UTC):%Y-%m-%d %H:%M} UTC"


def table(
    *columns: str, title: str | None = None, right: Sequence[int] = (), rows: Iterable[Iterable[object]] = ()
) -> Table:
    """`right`: columns of numbers."""
    grid = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        grid.add_column(column, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(str, row))
    return grid


def at_home(path: str | Path) -> str:
    """A path with ~ for the user's home folder, which may hold a private name."""
    return str(path).replace(str(Path.home()), "~", 1)


TYPICAL = "I forgot my login."  # a text to try a model with


def show_next(intro: str, *commands: Sequence[object]) -> None:
    """Print the next commands, quoted for a shell, one a line without wrapping, so that they can be copied."""
    lines = [shlex.join(["blindformer", *map(str, words)]) for words in commands]
    print("\n".join([f"\n{intro}:", *(f"  {line}" for line in lines)]))


def spare_folder(folder: Path) -> str:
    """Where what is made of `folder` may be compiled to."""
    return "compiled" if not Path("compiled").exists() else f"{folder}-compiled"


def mb(size: float, digits: int = 2) -> str:
    return f"{size / MB:.{digits}f}"


def price_table(price: Any, by: str, columns: Sequence[str], title: str | None = None) -> Table:
    """The costs of each layer or operation of a priced program, and their total. `columns`: some of those below."""
    cells = {
        "rounds": lambda layer: str(layer.rounds),
        "online MB": lambda layer: mb(layer.online_bytes),
        "offline MB": lambda layer: mb(layer.offline_bytes),
        "million MACs": lambda layer: f"{layer.macs / 1e6:.1f}",
        "share": lambda layer: "100.0%" if layer is price else f"{price.share(layer):.1%}",
    }
    listed = price.operations if by == "operation" else price.layers
    named = [(row.path, row) for row in listed] + [("[bold]total[/]", price)]
    rows = ([name, *(cells[column](layer) for column in columns)] for name, layer in named)
    return table(by, *columns, title=title, right=range(1, len(columns) + 1), rows=rows)


SHOWN = 5  # labels
PAIRS_OF = 12  # of more texts than this, cosines are for programs
_NAMES = {  # of an answer in JSON, and what one of its rows is called by
    "text-classification": ("labels", "label"),
    "image-classification": ("labels", "label"),
    "audio-classification": ("labels", "label"),
    "sentence-embedding": ("embedding", ""),
    "next-token": ("next", "token_str"),
    "fill-mask": ("tokens", "token_str"),
    "token-classification": ("entities", "word"),
    "question-answering": ("answers", "answer"),
    "translation": ("translation_text", ""),
    "summarization": ("summary_text", ""),
    "text2text-generation": ("generated_text", ""),
    "automatic-speech-recognition": ("text", ""),
}


def item_text(item: Any) -> str:
    """An input in one line: a text, an image's file, or a pair of texts."""
    return " | ".join(item) if isinstance(item, tuple) else str(item)


def in_words(task: str, value: Any, labels: int = SHOWN) -> str:
    name, called = _NAMES.get(task, ("", ""))
    if (text := _written(name, value)) is not None:
        return text.strip()
    if called and isinstance(value, list):
        rows = value[:labels] if called == "label" else value
        named = (f"{row[called]!r}{_entity(row)} {_score(row['score'])}" for row in rows)
        return "   ".join(named) or "nothing found"
    if task == "sentence-embedding":
        return _numbers(value)
    if isinstance(value, dict):
        return "   ".join(f"{name} {_numbers(item) if _flat(item) else _shape(item)}" for name, item in value.items())
    return f"features {_shape(value)}"


def asked(task: str, item: Any) -> dict[str, Any]:
    """An input as a row of JSON has it: an image, a recording, a text, or a text and its pair."""
    from ...models.loading.media import word_of

    if isinstance(item, tuple):
        return dict(zip(("text", "pair"), item, strict=True))
    return {word_of(task): item}


class HasAnswer(Protocol):
    """An input, and its answer (Task.read) or the error in its place."""

    @property
    def item(self) -> Any: ...
    @property
    def value(self) -> Any: ...
    @property
    def error(self) -> Exception | None: ...


def row_of(task: str, answer: HasAnswer) -> dict[str, Any]:
    """For JSON: an answer under the name that its kind has there, labels, embedding, next, ... or features."""
    name, _ = _NAMES.get(task, ("features", ""))
    if answer.error is not None:
        return {"error": str(answer.error)}
    text = _written(name, answer.value)
    return {name: answer.value if text is None else text}


def _written(name: str, value: Any) -> str | None:
    """The text in the answer of a model that writes one; None: it is of another."""
    row = value[0] if isinstance(value, list) and value else value
    text = row.get(name) if isinstance(row, dict) else None
    return text if isinstance(text, str) else None


def similarities(task: str, answers: Sequence[HasAnswer]) -> list[dict[str, Any]]:
    """Cosines of all pairs of a sentence encoder's embeddings, the most alike first. None for more than
    PAIRS_OF texts."""
    good = [(item_text(answer.item), answer.value) for answer in answers if answer.error is None]
    if task != "sentence-embedding" or len(good) > PAIRS_OF:
        return []
    rows = [
        {"a": a, "b": b, "cosine": sum(x * y for x, y in zip(one, other, strict=True))}
        for (a, one), (b, other) in combinations(good, 2)
    ]
    return sorted(rows, key=lambda row: -row["cosine"])


def cuts(answers: Sequence[Result]) -> list[str]:
    """For each text how far it was cut, or in how many parts it was asked, in words; empty if it was neither."""

    def cut(one: Result) -> str:
        return f"cut to {one.length} of {one.length + one.truncated} tokens" if one.truncated else ""

    return [f"asked in {one.windows} parts" if one.windows > 1 else cut(one) for one in answers]


def finish_of(answer: Result) -> dict[str, str]:
    """For JSON: how the answer of a model that writes ended, and of speech the language."""
    written = {"finish": answer.finish, "language": answer.language}
    return {name: value for name, value in written.items() if value}


def note_unfinished(answers: Sequence[Result]) -> None:
    if count := sum(one.finish == "length" for one in answers):
        note(f"{count} of {len(answers)} answers ended at the limit of tokens; compile with more --tokens")


def answer_table(
    task: str, answers: Sequence[HasAnswer], pairs: list[dict[str, Any]], labels: int = SHOWN, cut: Sequence[str] = ()
) -> Table:
    """Answers in words; of sentence encoders the cosines of `pairs`, where there are any. `labels`: of one answer.
    `cut`: of `cuts`."""
    from ...models.loading.media import word_of

    if pairs:
        rows = [(escape(pair["a"]), escape(pair["b"]), f"{pair['cosine']:.4f}") for pair in pairs]
        cosines = table("text", "text", "cosine", right=(2,), rows=rows)
        cosines.caption, cosines.caption_justify = (
            "\n".join(f"input {n}: {c}" for n, c in enumerate(cut, 1) if c),
            "left",
        )
        return cosines
    words = [
        (escape(item_text(one.item)), escape("no answer" if one.error else in_words(task, one.value, labels)))
        for one in answers
    ]
    if any(cut):
        return table(word_of(task), "answer", "read", rows=[(*row, c) for row, c in zip(words, cut, strict=True)])
    return table(word_of(task), "answer", rows=words)


def _entity(row: dict[str, Any]) -> str:
    return f" {row['entity']}" if "entity" in row else ""


def _flat(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, float) for item in value)


def _numbers(value: list[float]) -> str:
    return f"{len(value)} numbers: {', '.join(f'{x:.3f}' for x in value[:6])}, ..."


def _score(score: float) -> str:
    return f"{score:.1%}" if 0 <= score <= 1 else f"{score:.3f}"


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape
