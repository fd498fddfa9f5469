"""How the programs of cases/ are written, and what each of their values is held against.

A `Draft` writes a program while computing it in the clear, so shapes come by themselves. Every value is revealed: a
test can then hold each instruction against its own arguments, exactly, wherever roundings have gone before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from blindformer.models.compile import Compiled
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.program import Instruction, Program
from blindformer.models.program.two_server import for_two_servers
from blindformer.protocols.clear import ClearEngine
from blindformer.protocols.ring import sign_extend
from blindformer.protocols.states import KeptStates
from torch import Tensor

ENGINE = ClearEngine({})

CARRIES = list(product((0, 1), repeat=2))
SOURCES = ("client", "weight", "constant", "input", "state")


@dataclass(frozen=True)
class Case:
    """A program and its sources' values; `states`: what its states must be when it runs."""

    program: Program
    client: dict[str, Tensor]
    weights: dict[str, Tensor]
    constants: dict[str, Tensor]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)
    parts: dict[str, Compiled] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, Tensor]:
        return {**self.client, **self.weights, **self.constants, **self.inputs, **self.states}

    @classmethod
    def of(cls, compiled: Compiled, batch: dict[str, Tensor]) -> Case:
        """A model's Program with a batch."""
        return cls(compiled.program, compiled.encode_inputs(batch), compiled.weights, compiled.constants)

    def clear(self, states: KeptStates | None = None) -> dict[str, Tensor]:
        """The outputs on `clear`."""
        return interpret(self.program, ClearEngine(self.sources, states)).outputs


@dataclass
class Draft:
    instructions: list[Instruction] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=lambda: {kind: {} for kind in SOURCES})

    def client(self, value: Tensor, width: int = 64) -> int:
        return self._source("client", value, width)

    def weight(self, value: Tensor, width: int = 64) -> int:
        return self._source("weight", value, width)

    def constant(self, value: Tensor | int, width: int = 64) -> int:
        return self._source("constant", torch.as_tensor(value), width)

    def input(self, value: Tensor, width: int = 64) -> int:
        return self._source("input", value, width)

    def state(self, name: str, value: Tensor, **attributes: Any) -> int:
        """`value`: what it must be, which the program's session provides."""
        return self._source("state", value, 64, name, **attributes)

    def __call__(self, op: str, *args: int, width: int = 64, **attributes: Any) -> int:
        value = ENGINE.compute(op, [self.values[arg] for arg in args], attributes)
        return self._emit(op, args, value, width, attributes)

    def case(self, *revealed: int, to: str = "client") -> Case:
        """The program, revealing these values (none given: every value but the sources)."""
        chosen = revealed or [i for i, item in enumerate(self.instructions) if item.op not in SOURCES]
        outputs = {}
        for number in chosen:
            width = self.instructions[number].width
            outputs[str(number)] = self._emit("reveal", (number,), self.values[number], width, {"to": to})
        program = Program(instructions=tuple(self.instructions), outputs=outputs)
        program.check()
        return Case(program, *(self.tensors[kind] for kind in SOURCES))

    def _source(self, kind: str, value: Tensor, width: int, name: str = "", **attributes: Any) -> int:
        name = name or f"{kind}{len(self.instructions)}"
        self.tensors[kind][name] = value.long()
        return self._emit(kind, (), value.long(), width, {"name": name, **attributes})

    def _emit(self, op: str, args: tuple[int, ...], value: Tensor, width: int, attributes: dict[str, Any]) -> int:
        self.instructions.append(
            Instruction(op=op, args=args, attributes=attributes, shape=tuple(value.shape), width=width)
        )
        self.values.append(value)
        return len(self.instructions) - 1


def reveal_all(program: Program) -> Program:
    """The same program, with every value revealed instead of its outputs."""
    instructions = [item for item in program.instructions if item.op != "reveal"]
    assert all(item.op == "reveal" for item in program.instructions[len(instructions) :])
    outputs = {}
    for number, item in enumerate(list(instructions)):
        if item.op not in SOURCES:
            outputs[str(number)] = len(instructions)
            instructions.append(replace(item, op="reveal", args=(number,), attributes={"to": "client"}))
    return program.model_copy(update={"instructions": tuple(instructions), "outputs": outputs})


def handed_over(case: Case) -> Case:
    """The same computation for a data owner who takes no part."""
    return Case(
        for_two_servers(case.program), {}, case.weights, case.constants, {**case.client, **case.inputs}, case.states
    )


def case_of(name: str, away: bool = False) -> Case:
    """A case, or the same for an owner who takes no part."""
    case = CASES[name]()
    return handed_over(case) if away else case


def check(case: Case, outputs: dict[str, Tensor], parties: int = 2) -> None:
    """Every revealed value follows from its own arguments: exactly in the ring, a rescale to the floor or ceiling, or
    among more than two parties to less than half a unit for each.

    Holds programs that reveal all their values. Only the low `width` bits of a value are claimed; of a rescale whose
    argument is out of range, those below the wrap of its ring.
    """
    instructions = case.program.instructions
    values = {i: case.sources[x.attributes["name"]] for i, x in enumerate(instructions) if x.op in SOURCES}
    values.update((int(name), value) for name, value in outputs.items())
    assert set(outputs) == set(case.program.outputs)
    for number, item in enumerate(instructions):
        if item.op in SOURCES or item.op == "reveal":
            continue
        got, args = values[number], [values[arg] for arg in item.args]
        assert tuple(got.shape) == item.shape, f"{number} {item.op}"
        if item.op == "rescale":
            wrong = _not_rescaled(got, args[0], item, parties)
        elif item.op == "exp":
            wrong = _far_from_exp(got, *args, **item.attributes)
        elif item.op in ("less", "sides") and item.attributes.get("drop"):  # or as if a unit of the high bits larger
            more = args[0] + (1 << item.attributes["drop"])
            results = [ENGINE.compute(item.op, [x], item.attributes) for x in (args[0], more)]
            wrong = torch.stack([got != value for value in results]).all(0)
        elif item.op == "fourier":  # roundings of cosines, of the line between them, and of the dealer's numbers
            want, table = ENGINE.compute(item.op, args, item.attributes), args[1]
            allowed = (
                2 * len(table) + (len(table) * int(table.abs().sum()) >> 20) << item.attributes["fraction"]
            ) + table.abs().sum()
            wrong = sign_extend(got - want, item.width).abs() > allowed
        elif item.op == "reached":
            wrong = _not_reached(sign_extend(got, item.width), *args, **item.attributes)
        elif item.op == "lookup":  # this row, or the one above: what a mask's carry makes of it
            results = [ENGINE.compute(item.op, args, {**item.attributes, "carries": carries}) for carries in CARRIES]
            wrong = torch.stack([sign_extend(got - value, item.width) != 0 for value in results]).all(0)
        else:
            wrong = sign_extend(got - ENGINE.compute(item.op, args, item.attributes), item.width) != 0
        assert not bool(wrong.any()), f"{number} {item.op}: {int(wrong.sum())} of {wrong.numel()} elements are wrong"


def _far_from_exp(got: Tensor, x: Tensor, table: Tensor, **attributes: Any) -> Tensor:
    """Beyond what a carry into an empty cell, lines between points, and roundings of the dealer's numbers and of the
    table make of it. The last cell is not read as it should be."""
    want = ENGINE.compute("exp", [x, table], attributes)
    fraction, bits, low = (attributes[name] for name in ("fraction", "bits", "low"))
    last = (x - attributes["start"] & (1 << bits) - 1) >> low == (1 << bits - low) - 1
    allowed = (int(table.min()) + 2 << fraction) + int(table.max()) + (want.abs() >> 16)
    return ((got - want).abs() > allowed) & ~last


def _not_reached(got: Tensor, x: Tensor, *keep: Tensor, start: int, bits: int, low: int) -> Tensor:
    """Each may be in its cell, or in the one above: above the last is the first."""
    cells = torch.arange(1 << bits - low)
    cell = ((x - start & (1 << bits) - 1) >> low)[..., None]
    least, most = (cell >= cells) & ((cell < len(cells) - 1) | (cells == 0)), cell + 1 >= cells
    for mask in keep:
        least, most = (reached & (mask != 0)[..., None] for reached in (least, most))
    return (got < least.any(-2).long()) | (got > most.any(-2).long())


def _not_rescaled(got: Tensor, x: Tensor, item: Instruction, parties: int) -> Tensor:
    bits, ring = item.attributes["bits"], item.attributes.get("ring", 64)
    x = sign_extend(x, ring)
    more = (parties - 1) // 2
    errors = [got - (x >> bits) + n for n in range(-more, more + 1)]  # from the floor
    errors += [got + (-x >> bits) + n for n in range(-more, more + 1)]  # from the ceiling
    edge = (1 << ring - 2) - (more << bits)
    fits = (x < edge) & (x >= -edge)
    wraps = max(1, min(item.width, ring - bits))
    inside, outside = (
        torch.stack([sign_extend(error, width) != 0 for error in errors]).all(0) for width in (item.width, wraps)
    )
    return torch.where(fits, inside, outside)


CASES: dict[str, Callable[[], Case]] = {}


def program(*variants: Any) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """Register a function of a Draft and generator of test data (and a variant's value) as a case."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def build(*extra: Any) -> Case:
            draft = Draft()
            to = function(draft, Data(7), *extra)
            return draft.case(to=to or "client")

        name = function.__name__
        for variant in variants:
            CASES[f"{name}-{variant}"] = lambda variant=variant: build(variant)
        if not variants:
            CASES[name] = build
        return function

    return register


class Data:
    """Seeded test data (never masks)."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def ints(self, *shape: int, bits: int = 20) -> Tensor:
        """Signed integers below 2^bits in magnitude."""
        top = 1 << bits
        return torch.randint(1 - top, top, shape, generator=self.generator)

    def words(self, *shape: int) -> Tensor:
        """Any element of the ring."""
        return torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=self.generator)

    def bits(self, *shape: int) -> Tensor:
        return torch.randint(0, 2, shape, generator=self.generator)


def hidden(d: Draft, data: Data, *shape: int, bits: int = 20) -> int:
    """A shared value: a client's times one weight each."""
    return d("mul_private", d.client(data.ints(*shape, bits=bits // 2)), d.weight(data.ints(*shape, bits=bits // 2)))


def scaled(d: Draft, data: Data, *shape: int, bits: int = 20, drop: int = 12) -> int:
    """A shared value that a rescale has opened."""
    return d("rescale", hidden(d, data, *shape, bits=bits + drop), bits=drop)
