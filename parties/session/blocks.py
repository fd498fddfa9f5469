"""Correlations of runs to come, made several at once: each side takes them in order, and forgets them all otherwise."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

from ...models.artifacts.circuits import texts_of
from ...models.program.program import Program
from ...protocols.operations.reveal import RevealedRows
from .messages import PartRun

T = TypeVar("T")


class RunBlock(Generic[T]):
    """What is left of the last block. Both sides hold the same turns, and neither makes anew what the other holds.

    The masks of what a conversation keeps are those of the runs before, so a block fits one order of runs alone.
    """

    def __init__(self) -> None:
        self._left: deque[tuple[PartRun, T]] = deque()

    def fill(self, part_run: PartRun, program: Program, tapes: Sequence[T]) -> T:
        """Of `part_run`, which are returned, and those that follow it when each is run."""
        first, *rest = tapes
        each = rows_of_a_run(program)
        self._left = deque(
            (part_run.model_copy(update={"rows": part_run.rows + each * number}), tape)
            for number, tape in enumerate(rest, start=1)
        )
        return first

    def take(self, part_run: PartRun) -> T | None:
        """The correlations of this run, if it is the next; else nothing is left."""
        if self._left and self._left[0][0].model_copy(update={"runs": part_run.runs}) == part_run:
            return self._left.popleft()[1]
        self._left.clear()
        return None


def may_run(program: Program, part_run: PartRun) -> bool:
    """Whether a program has this part. Several runs at once are for runs of one row: others are large already."""
    if part_run.part not in (program.parts or ("",)):
        return False
    return part_run.runs == 1 or rows_of_a_run(program.part(part_run.part)) == 1


def may_reveal(program: Program, rows: RevealedRows | None) -> bool:
    """Whether a part's results have these rows; a program without rows reveals all."""
    most = rows_of_a_run(program)
    return rows is None or (most > 0 and 0 <= rows[0] <= rows[1] <= most)


def count_of(program: Program, rows: RevealedRows | None) -> int:
    """What a query counts for: its texts; of a part of a conversation the tokens that it reveals, one at least."""
    most = rows_of_a_run(program)
    first, end = rows or (0, most)
    return max(1, end - first) if most else texts_of(program)


def most_revealed(program: Program) -> int:
    """What a query counts for at most."""
    return max(count_of(part, None) for part in (program.parts or {"": program}).values())


def rows_of_a_run(program: Program) -> int:
    """How many rows a run keeps."""
    return next((item.shape[-2] for item in program.instructions if item.op == "keep"), 0)
