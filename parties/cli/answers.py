"""Answers on a terminal and in JSON: what `run` and `query` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from rich.markup import escape
from rich.table import Table

from .items import shown
from .output import table

SHOWN = 5  # labels
_KEYS = {
    "text-classification": "labels",
    "image-classification": "labels",
    "audio-classification": "labels",
    "sentence-embedding": "embedding",
    "next-token": "next",
    "fill-mask": "tokens",
    "token-classification": "entities",
    "question-answering": "answers",
}
_NAMED = {  # what a row of an answer is called by
    "text-classification": "label",
    "image-classification": "label",
    "audio-classification": "label",
    "next-token": "token_str",
    "fill-mask": "token_str",
    "token-classification": "word",
    "question-answering": "answer",
}


def as_json(task: str, value: Any) -> dict[str, Any]:
    """An answer (Task.read) under the name that its kind has in JSON: labels, embedding, next, ... or features."""
    return {_KEYS.get(task, "features"): value}


def in_words(task: str, value: Any) -> str:
    if task in _NAMED and isinstance(value, list):
        rows = value[:SHOWN] if "classification" in task and task != "token-classification" else value
        named = (f"{row[_NAMED[task]]!r}{_entity(row)} {_score(row['score'])}" for row in rows)
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


@dataclass(frozen=True)
class AnsweredItem:
    """What was asked, and what came of it: a value (Task.read), or why there is none."""

    item: Any
    value: Any = None
    error: Exception | None = None

    def row(self, task: str) -> dict[str, Any]:
        """For JSON."""
        return as_json(task, self.value) if self.error is None else {"error": str(self.error)}


def similarities(task: str, answers: Sequence[AnsweredItem], most: int | None = None) -> list[dict[str, Any]]:
    """Of sentence encoders: cosines of all pairs, the most alike first; embeddings are of length one. None of more than
    `most` texts."""
    good = [(shown(answer.item), answer.value) for answer in answers if answer.error is None]
    if task != "sentence-embedding" or (most is not None and len(good) > most):
        return []
    rows = [
        {"a": a, "b": b, "cosine": sum(x * y for x, y in zip(one, other, strict=True))}
        for (a, one), (b, other) in combinations(good, 2)
    ]
    return sorted(rows, key=lambda row: -row["cosine"])


def answer_table(task: str, answers: Sequence[AnsweredItem], pairs: list[dict[str, Any]]) -> Table:
    """Answers in words; of sentence encoders the cosines of `pairs`, where there are any."""
    from ...models.loading.media import word_of

    if pairs:
        rows = [(escape(pair["a"]), escape(pair["b"]), f"{pair['cosine']:.4f}") for pair in pairs]
        return table("text", "text", "cosine", right=(2,), rows=rows)
    words = [
        (escape(shown(one.item)), escape("no answer" if one.error else in_words(task, one.value))) for one in answers
    ]
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
