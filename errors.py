"""The base of every error, which all rooms share: whoever catches it catches them all."""

from __future__ import annotations


class BlindformerError(Exception):
    """Base of every error that is not a bug. Its message says in one line what happened, where, and what to do.

    Messages never contain values, shares or keys.
    """


def first_line(error: BaseException, most: int = 200) -> str:
    """What another library's error says, short enough to stand in one of ours."""
    words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)  # whose file, ours say
    return (words.strip().splitlines() or [type(error).__name__])[0][:most]


def is_full_gpu(error: BaseException) -> bool:
    """Whether torch says that a GPU has no memory left. By name: torch may not be loaded."""
    return type(error).__name__ == "OutOfMemoryError"
