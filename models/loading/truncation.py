"""Texts of more tokens than a model is compiled for: refused, with the ways out, cut at one end, or in windows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from .huggingface import InputError

Truncation = Literal["off", "start", "end", "windows"]
"""off: refuse; end: keep the beginning, and cut the end off; start: cut the beginning off; windows: ask every part, in
windows that overlap (windows.py). Special tokens stay."""
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
