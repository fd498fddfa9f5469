"""Passes of a conversation in a session of two parties: each runs a part of the program, on what earlier ones kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ...models.generation.rows import Part, Pass
from .client import Answer, ClientParty
from .messages import Turn

Told = Callable[[str, Answer], None]
"""Called after each pass, with its part's name."""


def passes(party: ClientParty, parts: Mapping[str, Part], told: Told | None = None) -> Pass:
    """While one pass runs, both sides make the correlations of the one that most likely follows."""

    def run(name: str, inputs: Mapping[str, Tensor], following: tuple[str, int]) -> Mapping[str, Tensor]:
        part, rows = parts[name], int(inputs["rows"])
        answer = party.query(
            part.encode_inputs(inputs),
            more=True,
            turn=Turn(part=name, rows=rows),
            following=Turn(part=following[0], rows=following[1]),
            constants={**part.constants, **part.encode_known(inputs)},
        )
        if told:
            told(name, answer)
        return part.decode(answer.outputs)

    return run
