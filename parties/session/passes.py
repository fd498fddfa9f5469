"""Passes of a conversation in its session: each runs a part of the program, on what earlier ones kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ...models.generation.parts import size_of
from ...models.generation.rows import Part, Pass, room, window
from ...models.program.program import Program
from ...protocols.operations.reveal import RevealedRows
from .client import ClientParty
from .helper.owner import OwnerParty
from .messages import PartRun
from .online import Progress
from .timings import Answer

OnPass = Callable[[str, Answer], None]
"""Called after each pass, with its part's name."""


RUNS = 8  # passes of one token whose correlations are made at once


def part_run(program: Program, part: str, rows: int) -> PartRun:
    """Of a pass, with as many runs made at once as there is room for."""
    held = program.part(part)
    left = room(program if window(held) else held) - rows
    return PartRun(part=part, rows=rows, runs=max(1, min(RUNS, left)) if size_of(part) == 1 else 1)


def passes(
    party: ClientParty | OwnerParty,
    parts: Mapping[str, Part],
    on_pass: OnPass | None = None,
    progress: Progress | None = None,
) -> Pass:
    """While one pass runs, both sides make the correlations of the one that most likely follows."""

    def run(
        name: str, inputs: Mapping[str, Tensor], following: tuple[str, int], revealed: RevealedRows
    ) -> Mapping[str, Tensor]:
        part, rows = parts[name], int(inputs["rows"])
        answer = party.query(
            part.encode_inputs(inputs),
            progress,
            more=True,
            part_run=part_run(party.program, name, rows),
            following=part_run(party.program, *following),
            constants={**part.constants, **part.encode_known(inputs)},
            revealed=revealed,
        )
        if on_pass:
            on_pass(name, answer)
        return part.decode(answer.outputs)

    return run
