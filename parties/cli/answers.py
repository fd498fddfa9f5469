"""Answers on a terminal and in JSON: what `run` and `query` share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol

from rich.markup import escape
from rich.table import Table

from .items import shown
from .output import table

if TYPE_CHECKING:  # importing it takes seconds
    from ..client.base import Result

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
}


def in_words(task: str, value: Any, labels: int = SHOWN) -> str:
    _, called = _NAMES.get(task, ("", ""))
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
    """What was asked, as a row of JSON has it: an image, a sound, a text, or a text and its pair."""
    from ...models.loading.media import word_of

    if isinstance(item, tuple):
        return dict(zip(("text", "pair"), item, strict=True))
    return {word_of(task): item}


class HasAnswer(Protocol):
    """What was asked, and what came of it: a value (Task.read), or why there is none."""

    @property
    def item(self) -> Any: ...
    @property
    def value(self) -> Any: ...
    @property
    def error(self) -> Exception | None: ...


def row_of(task: str, answer: HasAnswer) -> dict[str, Any]:
    """For JSON: an answer under the name that its kind has there, labels, embedding, next, ... or features."""
    name, _ = _NAMES.get(task, ("features", ""))
    return {name: answer.value} if answer.error is None else {"error": str(answer.error)}


def similarities(task: str, answers: Sequence[HasAnswer]) -> list[dict[str, Any]]:
    """Of sentence encoders: cosines of all pairs, the most alike first; embeddings are of length one. None of more than
    PAIRS_OF texts."""
    good = [(shown(answer.item), answer.value) for answer in answers if answer.error is None]
    if task != "sentence-embedding" or len(good) > PAIRS_OF:
        return []
    rows = [
        {"a": a, "b": b, "cosine": sum(x * y for x, y in zip(one, other, strict=True))}
        for (a, one), (b, other) in combinations(good, 2)
    ]
    return sorted(rows, key=lambda row: -row["cosine"])


def cuts(answers: Sequence[Result]) -> list[str]:
    """Of each text what was cut off it, in words; empty where nothing was."""
    return [f"cut to {one.length} of {one.length + one.truncated} tokens" if one.truncated else "" for one in answers]


def answer_table(
    task: str,
    answers: Sequence[HasAnswer],
    pairs: list[dict[str, Any]],
    labels: int = SHOWN,
    cut: Sequence[str] = (),
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
        (escape(shown(one.item)), escape("no answer" if one.error else in_words(task, one.value, labels)))
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
