"""Runs a Program on any protocol's engine. The same loop serves every party and every phase."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...protocols.base import Engine
from ...protocols.rounds import Step, Swap, run_rounds
from .program import Program


@dataclass
class Execution:
    """`outputs`: results by name (None at parties that learn nothing). `rounds`: messages in sequence."""

    outputs: dict[str, Any]
    rounds: int


def no_wire(swaps: list[Swap]) -> list[Any]:
    """The wire of a phase that sends nothing."""
    raise RuntimeError("this phase must not communicate; this is a bug")


def interpret(
    program: Program,
    engine: Engine,
    wire: Callable[[list[Swap]], list[Any]] = no_wire,
    progress: Callable[[int], None] | None = None,
    observe: Callable[[int, Any], None] | None = None,
) -> Execution:
    """Execute all instructions. `progress` gets each finished number; `observe` also its value (for tests)."""
    instructions, graph = program.instructions, program.graph
    values: dict[int, Any] = {}
    outputs = {number: name for name, number in program.outputs.items()}
    left = [len(users) for users in graph.users]  # readers still to come: a value is dropped after the last

    def start(number: int) -> Step:
        item = instructions[number]
        args = [values[arg] for arg in item.args]
        return engine.execute(str(number), item.op, item.shape, item.width, args, item.attributes)

    def done(number: int, value: Any) -> None:
        if observe:
            observe(number, value)
        for arg in graph.needs[number]:
            left[arg] -= 1
            if not left[arg] and arg not in outputs:
                del values[arg]
        values[number] = value
        if progress:
            progress(number)

    rounds = run_rounds(graph, start, done, wire)
    return Execution({name: values[number] for number, name in outputs.items()}, rounds)
