"""Texts of more tokens than a model is compiled for: refused, with the ways out, cut at one end, or in windows."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .huggingface import InputError

Truncation = Literal["off", "start", "end", "windows"]
"""off: refuse; end: keep the beginning, and cut the end off; start: cut the beginning off; windows: ask every part, in
windows that overlap. Special tokens stay."""
REPORTED: dict[Truncation, tuple[str, ...]] = {
    "off": (),
    "start": ("truncated",),
    "end": ("truncated",),
    "windows": ("windows",),
}
"""Fields of an answer that say what became of a long text."""
TRUNCATIONS: tuple[Truncation, ...] = get_args(Truncation)
SIDES = {"start": "left", "end": "right"}
"""That are cut, as tokenizers call them."""
_OTHER_NAMES: dict[Any, Truncation] = {
    None: "off",
    False: "off",
    "do_not_truncate": "off",
    True: "end",
    "longest_first": "end",
}


def truncation_of(given: Any) -> Truncation:
    """One of `Truncation`, for which transformers has other names: True, "longest_first". Errors: InputError."""
    if isinstance(given, str) and given in TRUNCATIONS:
        return given  # type: ignore[return-value]
    if isinstance(given, str | bool | None) and given in _OTHER_NAMES:
        return _OTHER_NAMES[given]
    raise InputError(f"truncation {given!r}: is not known; choose one of {', '.join(TRUNCATIONS)}")


@dataclass(frozen=True)
class WaysOut:
    """What can be given for a text that is too long, as it is written in one place: a command, Python, a request.

    cut      cuts it; empty: nothing does
    length   pads to another length that is there, {length}
    compile  makes the model take it, with {lengths}
    """

    cut: str
    length: str
    compile: str


IN_PYTHON = WaysOut('truncate="end" or "windows"', "length={length}", "compile with lengths=[{lengths}]")
IN_COMMANDS = WaysOut("--truncate end", "--length {length}", "compile with --lengths {lengths}")
IN_QUERIES = replace(IN_COMMANDS, cut="--truncate end or windows")
IN_REQUESTS = WaysOut(
    '"truncate": true in the request, or --truncate end to the gateway',
    "no length",  # a request chooses none
    "compile with --lengths {lengths} (`up` has it, too)",
)


class TooLong(InputError):
    """A text of more tokens than fit.

    tokens     of the text
    most       that fit now
    lengths    that there are to choose from
    positions  that the model takes; None: there is no such limit
    """

    def __init__(self, tokens: int, most: int, lengths: Collection[int], positions: int | None, ways: WaysOut) -> None:
        longest = max([most, *lengths])
        given, limit, more = [ways.cut] if ways.cut else [], f"the model is compiled for {longest} at most", []
        if fitting := [length for length in lengths if length >= tokens]:
            limit = f"the length asked for is {most}"
            given.append(ways.length.format(length=min(fitting)))
        elif positions is None or tokens <= positions:
            power = min(1 << (tokens - 1).bit_length(), positions or 1 << 62)
            more.append(ways.compile.format(lengths=",".join(map(str, sorted({*lengths, power})))))
        else:
            limit = f"the model takes {positions} at most"
            limit += f" and is compiled for {longest}" if longest < positions else ""
        giving = [f"give {' or '.join(given)}"] if given else []
        remedies = ", ".join([*giving, *more, "shorten it", "or split it into several"])
        super().__init__(f"text has {tokens} tokens, {limit}: {remedies}")


# A text that is longer than a model takes, in windows that overlap, and one answer of those of its windows.
#
# A window has whole words, and an eighth of its tokens from the one before, so that no sentence is seen in halves
# alone. How answers are joined depends on what they are:
#
# classifier, sentence   the mean of the logits, or of the embeddings, weighted by the tokens of each window
# tokens                 each token's label is that of the window in which it is farther from an end
# span                   the most likely of all windows, by the score that each window gives


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
