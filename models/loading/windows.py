"""A text that is longer than a model takes, in windows that overlap, and one answer of those of its windows.

A window has whole words, and an eighth of its tokens from the one before, so that no sentence is seen in halves alone.
How answers are joined depends on what they are:

classifier, sentence   the mean of the logits, or of the embeddings, weighted by the tokens of each window
tokens                 each token's label is that of the window in which it is farther from an end
span                   the likeliest of all windows, by the score that each window gives
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

OVERLAP = 8
"""A window has an eighth of its tokens from the one before it."""
MEANS = ("classifier", "sentence")
WINDOWED = (*MEANS, "tokens", "span")


@dataclass(frozen=True)
class TextWindow:
    """A part of a text. `item`: what is asked; `start`, `end`: its characters in the text; `before`: tokens of the text
    that come before it."""

    item: Any
    start: int
    end: int
    before: int


def word_windows(words: Sequence[int | None], room: int) -> list[tuple[int, int]]:
    """The first token of each window and the one after its last, at most `room` tokens apart. `words`: of each token
    the number of its word. A word of more tokens than a window has is divided.

    >>> word_windows([0, 0, 1, 2, 3, 3, 4], 4)
    [(0, 4), (4, 7)]
    """
    count, overlap = len(words), room // OVERLAP
    starts = [i for i in range(count) if not i or words[i] is None or words[i] != words[i - 1]] + [count]

    def end_from(first: int) -> int:
        return starts[bisect_right(starts, first + room) - 1]

    windows, first, last = list[tuple[int, int]](), 0, 0
    while last < count:
        end = end_from(first)
        if end <= last < end_from(last):  # the next word needs the room of what the windows would share
            first, end = last, end_from(last)
        elif end <= last:
            end = min(first + room, count)
        windows.append((first, end))
        again = starts[bisect_left(starts, end - overlap)]
        again = again if again <= end else end - overlap
        first, last = again if again > first else end, end
    return windows


def joined_rows(kind: str, windows: Sequence[TextWindow], answers: Sequence[Any], top_k: int | None) -> list[Any]:
    """The rows of an answer of tokens or spans, with places in the whole text, of those of its windows."""
    rows: list[dict[str, Any]] = []
    for number, (window, answer) in enumerate(zip(windows, answers, strict=True)):
        least = (window.start + windows[number - 1].end) / 2 if number else 0
        most = (window.end + windows[number + 1].start) / 2 if number + 1 < len(windows) else window.end + 1
        for row in answer:
            moved = {**row, "start": row["start"] + window.start, "end": row["end"] + window.start}
            if kind == "span":
                rows.append(moved)
            elif least <= moved["start"] < most:
                rows.append({**moved, "index": row["index"] + window.before})
    if kind != "span":
        return rows
    best = {(row["start"], row["end"]): row for row in sorted(rows, key=lambda row: row["score"])}
    return sorted(best.values(), key=lambda row: -row["score"])[: top_k or 1]
