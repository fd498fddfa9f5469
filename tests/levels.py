"""The levels of processors that this machine can run, for tests that hold at each of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from blindformer.levels import LEVELS, TORCH, LevelError, kernels_of, level
from blindformer.protocols.kernels import library


def _parameter(name: str) -> object:
    try:
        kernels_of(name)
    except LevelError as error:
        return pytest.param(name, marks=pytest.mark.skip(reason=str(error)))
    return name


KERNELS = [_parameter(name) for name in LEVELS]  # those with kernels
EVERY = [*KERNELS, TORCH]
# For what takes long: the one that computes here, and none. The kernels of each give the bits of torch
# (protocols/test_kernels.py, protocols/test_matmul.py).
OWN_AND_TORCH = list(dict.fromkeys([level(), TORCH]))


def without_note(printed: str) -> str:
    """What a command has printed, without its note, or a service's line, of a machine that has no fast kernels."""
    lines = printed.splitlines(keepends=True)
    return "".join(line for line in lines if not re.match(r"(note:|slow) +without .* a query takes", line))


@contextmanager
def at(name: str) -> Iterator[None]:
    """Compute at this level, whatever the processor could do."""
    before, library.library = library.library, library.load(name)
    try:
        yield
    finally:
        library.library = before
