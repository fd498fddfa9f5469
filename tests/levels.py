"""The levels of processors that this machine can run, for tests that hold at each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from blindformer.levels import LEVELS, TORCH, LevelError, kernels_of
from blindformer.protocols.kernels import library


def _parameter(level: str) -> object:
    try:
        kernels_of(level)
    except LevelError as error:
        return pytest.param(level, marks=pytest.mark.skip(reason=str(error)))
    return level


KERNELS = [_parameter(level) for level in LEVELS]  # those with kernels
EVERY = [*KERNELS, TORCH]


def without_note(printed: str) -> str:
    """What a command has printed, without its note, or a service's line, of a machine that has no fast kernels."""
    lines = printed.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"(note:|slow) +without .* a query takes", line))


@contextmanager
def at(level: str) -> Iterator[None]:
    """Compute at this level, whatever the processor could do."""
    before, library.library = library.library, library.load(level)
    try:
        yield
    finally:
        library.library = before
