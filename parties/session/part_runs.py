"""Runs of a program's parts: which there are, what they reveal and count for, and the passes of a conversation.

A conversation's program has several parts. Each pass runs one of them, on the rows that earlier passes kept; while it
runs, both sides make the correlations of the pass that most likely follows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from ...models.artifacts.circuits import texts_of
from ...models.generation.parts import size_of
from ...models.generation.rows import Part, Pass, room, window
from ...models.program.program import Program
from ...protocols.channel import Channel
from ...protocols.operations.reveal import RevealedRows
from ..receipts.statement import SessionFacts, SignedStatement, Signer
from .messages import ONE_RUN, PartRun, Runs, out_of_place
from .online import Answer, Progress
from .statements import SessionNotes

RUNS = 8  # passes of one token whose correlations are made at once

OnPass = Callable[[str, Answer], None]
"""Called after each pass, with its part's name."""


class QueryingParty(ABC):
    """The querying party's end of one session: the client of two parties, or the data owner of two servers."""

    program: Program
    setup_bytes = 0  # of masked weights that were downloaded
    signer: Signer | None = None  # of this side; only with it there are receipts
    notes: SessionNotes

    @abstractmethod
    def query(
        self,
        sources: Mapping[str, Tensor],
        progress: Progress | None = None,
        more: bool = False,
        runs: Runs = ONE_RUN,
        constants: Mapping[str, Tensor] | None = None,
    ) -> Answer:
        """Run one query on encoded sources (Compiled.encode_inputs).

        `more`: another query follows, so both sides make its correlations while this one runs. Correlations that are
        made and not used are lost. `constants`: of the part that this query runs, for a program with several.
        """

    @abstractmethod
    def announce(self, part_run: PartRun) -> None:
        """The next query will most likely run this: make its live correlations now, while nobody asks. Once between
        two queries."""

    @abstractmethod
    def vouched(self) -> tuple[SessionFacts, tuple[SignedStatement, ...]]:
        """Between two queries: the session as this side saw it, and the others' statements. Errors: PeerError."""

    @abstractmethod
    def close(self) -> None:
        """Say goodbye. After an error, too."""


def may_run(program: Program, part_run: PartRun) -> bool:
    """Whether a program has this part. Several runs at once are for runs of one row: others are large already."""
    if part_run.part not in (program.parts or ("",)):
        return False
    return part_run.runs == 1 or rows_of_a_run(program.part(part_run.part)) == 1


def may_reveal(program: Program, rows: RevealedRows | None) -> bool:
    """Whether a part's results have these rows; a program without rows reveals all, and one without results none."""
    most = rows_of_a_run(program)
    has_rows = most > 0 or not program.outputs
    return rows is None or (has_rows and 0 <= rows[0] <= rows[1] <= most)


def check_runs(
    channel: Channel, program: Program, kept: int, *part_runs: PartRun, revealed: RevealedRows | None = None
) -> None:
    """Errors: `PeerProtocolError` unless the program has all of these runs, the first of them reads at most the `kept`
    rows, and its results have the rows `revealed`."""
    first = part_runs[0]
    known = all(may_run(program, one) for one in part_runs)
    if not known or first.rows > kept or not may_reveal(program.part(first.part), revealed):
        raise out_of_place(channel)


def count_of(program: Program, rows: RevealedRows | None) -> int:
    """What a query counts for: its texts; for a part of a conversation the tokens that it reveals, one at least."""
    most = rows_of_a_run(program)
    first, end = rows or (0, most)
    return max(1, end - first) if most else texts_of(program)


def most_revealed(program: Program) -> int:
    """The most that a query counts for."""
    return max(count_of(part, None) for part in (program.parts or {"": program}).values())


def rows_of_a_run(program: Program) -> int:
    """How many rows a run adds to those kept; 0 of one that keeps a source's."""
    kept = (item for item in program.instructions if item.op == "keep" and not item.attributes.get("whole"))
    return next((item.shape[-2] for item in kept), 0)


def part_run(program: Program, part: str, rows: int) -> PartRun:
    """One pass, with as many runs made at once as there is room for."""
    program_part = program.part(part)
    if size_of(part) != 1:
        return PartRun(part=part, rows=rows)
    left = room(program if window(program_part) else program_part) - rows
    return PartRun(part=part, rows=rows, runs=max(1, min(RUNS, left)))


def passes(
    party: QueryingParty,
    parts: Mapping[str, Part],
    on_pass: OnPass | None = None,
    progress: Progress | None = None,
) -> Pass:
    """The function that runs one pass of a conversation in `party`'s session."""

    def run(
        name: str, inputs: Mapping[str, Tensor], following: tuple[str, int], revealed: RevealedRows
    ) -> Mapping[str, Tensor]:
        part, rows = parts[name], int(inputs["rows"])
        runs = Runs(
            turn=part_run(party.program, name, rows), following=part_run(party.program, *following), revealed=revealed
        )
        constants = {**part.constants, **part.encode_known(inputs)}
        answer = party.query(part.encode_inputs(inputs), progress, True, runs, constants)
        if on_pass:
            on_pass(name, answer)
        return part.decode(answer.outputs)

    return run
