"""Answers on a terminal and in JSON: what `run` and `query` share."""

from __future__ import annotations

from itertools import combinations
from typing import Any

from rich.markup import escape
from rich.table import Table

from .output import table

SHOWN = 5  # labels, next tokens
_KEYS = {
    "text-classification": "labels",
    "image-classification": "labels",
    "sentence-embedding": "embedding",
    "next-token": "next",
}


def as_json(task: str, value: Any) -> dict[str, Any]:
    """An answer (Task.read) under the name that its kind has in JSON: labels, embedding, next, or features."""
    return {_KEYS.get(task, "features"): value}


def in_words(task: str, value: Any) -> str:
    if task in ("text-classification", "image-classification"):
        return "   ".join(f"{row['label']!r} {_score(row['score'])}" for row in value[:SHOWN])
    if task == "next-token":
        return "   ".join(f"{row['token_str']!r} {row['score']:.1%}" for row in value)
    if task == "sentence-embedding":
        return f"{len(value)} numbers: {', '.join(f'{x:.3f}' for x in value[:6])}, ..."
    if isinstance(value, dict):
        return "   ".join(f"{name} {_shape(item)}" for name, item in value.items())
    return f"features {_shape(value)}"


def similarities(items: list[str], embeddings: list[list[float]]) -> list[dict[str, Any]]:
    """Cosines of all pairs, the most alike first; embeddings are of length one."""
    rows = [
        {"a": a, "b": b, "cosine": sum(x * y for x, y in zip(one, other, strict=True))}
        for (a, one), (b, other) in combinations(zip(items, embeddings, strict=True), 2)
    ]
    return sorted(rows, key=lambda row: -row["cosine"])


def answer_table(task: str, answers: list[tuple[str, str]], pairs: list[dict[str, Any]] | None = None) -> Table:
    """(item, answer in words) by row; of sentence encoders the cosines of `pairs`, where there are any."""
    if pairs:
        rows = table("text", "text", "cosine", right=(2,))
        for pair in pairs:
            rows.add_row(escape(pair["a"]), escape(pair["b"]), f"{pair['cosine']:.4f}")
        return rows
    rows = table("image" if task.startswith("image") else "text", "answer")
    for item, words in answers:
        rows.add_row(escape(item), escape(words))
    return rows


def _score(score: float) -> str:
    return f"{score:.1%}" if 0 <= score <= 1 else f"{score:.3f}"


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape
