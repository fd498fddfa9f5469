"""The server's part: programs and weights, and where the secret that masks the weights for clients lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...approximations import Plan
from ..compile import Compiled
from ..lowering.structure import Structure
from ..program.program import Program
from .circuits import CircuitPart, read_circuit
from .client import ClientLength, load_client
from .layout import SECRET, find_part, length_folder, only, read_json, read_programs
from .tensors import ProgramPart, named, public_constants, read_parts, read_tensors


@dataclass
class ServerLength:
    """One program with its ring integers by name. Tensors that are equal in several lengths are the same objects."""

    program: Program
    weights: dict[str, Tensor] = field(repr=False)
    constants: dict[str, Tensor] = field(repr=False)
    circuit: CircuitPart | None = field(default=None, repr=False)
    parts: dict[str, ProgramPart] = field(default_factory=dict, repr=False)


@dataclass
class ServerPart(Mapping[str, ServerLength]):
    """A mapping: hash of a program -> ServerLength. `lengths`: the same by length. `model`: name, kind, parameters."""

    folder: Path
    lengths: dict[int, ServerLength]
    plan: Plan
    model: dict[str, Any]

    def __post_init__(self) -> None:
        self._by_hash = {item.program.hash(): item for item in self.lengths.values()}

    def __getitem__(self, program: str) -> ServerLength:
        return self._by_hash[program]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_hash)

    def __len__(self) -> int:
        return len(self._by_hash)

    def for_length(self, length: int | None = None) -> ServerLength:
        """None: the only one there is. Errors: ArtifactError."""
        return only(self.lengths, length, self.folder)

    @property
    def secret_file(self) -> Path:
        """Where the secret lies from which the masks of the weights follow. A recompilation into
        the same folder keeps it."""
        return self.folder / SECRET


def load_server(folder: str | Path) -> ServerPart:
    """The server's part of a compiled folder, DIR or DIR/server. Errors: ArtifactError, ProgramError."""
    part = find_part(folder, "server")
    tensors, lengths = read_tensors(part), {}
    for number, program in read_programs(part).items():
        file = length_folder(part, number) / "tensors.json"
        names = read_json(file)
        lengths[number] = ServerLength(
            program,
            named(tensors, names["weights"], file, multiplied(program)),
            public_constants(tensors, names["constants"], file, program),
            read_circuit(part, number),
            read_parts(program, names.get("parts", {}), tensors, file),
        )
    return ServerPart(part, lengths, Plan.load(part / "plan.json"), read_json(part / "model.json"))


def multiplied(program: Program) -> set[str]:
    """The weights that products of matrices read, and nothing else: these take integers of any width, and a row by a
    matrix takes as long as reading it."""
    factors: set[str] = set()
    others: set[str] = set()
    for part in program.parts.values() or (program,):
        weights = {n: item.attributes["name"] for n, item in enumerate(part.instructions) if item.op == "weight"}
        for item in part.instructions:
            for place, arg in enumerate(item.args):
                if arg in weights:
                    (factors if item.op == "linear" and place == 1 else others).add(weights[arg])
    return factors - others


# The helper's part: programs and public constants. Nothing in it is anybody's secret.


@dataclass
class HelperLength:
    """One program, as compiled, with its public ring integers by name."""

    program: Program
    constants: dict[str, Tensor] = field(repr=False)
    parts: dict[str, ProgramPart] = field(default_factory=dict, repr=False)


@dataclass
class HelperPart:
    """`lengths`: as the other parts'."""

    folder: Path
    lengths: dict[int, HelperLength]

    def for_length(self, length: int | None = None) -> HelperLength:
        """None: the only one there is. Errors: ArtifactError."""
        return only(self.lengths, length, self.folder)


def load_helper(folder: str | Path) -> HelperPart:
    """The helper's part of a compiled folder, DIR or DIR/helper. Errors: ArtifactError, ProgramError."""
    part = find_part(folder, "helper")
    tensors, lengths = read_tensors(part), {}
    for number, program in read_programs(part).items():
        file = length_folder(part, number) / "tensors.json"
        names = read_json(file)
        parts = read_parts(program, names["parts"], tensors, file)
        lengths[number] = HelperLength(program, public_constants(tensors, names["constants"], file, program), parts)
    return HelperPart(part, lengths)


# A compiled model from the parts of both sides, for a process that may hold both.


def compiled_of(client: ClientLength, server: ServerLength, plan: Plan) -> Compiled:
    """It answers by output name: the form of the model's own output is not on disk."""
    nowhere = Structure(None, (), (), ())
    return Compiled(server.program, server.weights, server.constants, client.tensors, client.scales, plan, nowhere)


def load_compiled(folder: Path) -> Compiled:
    """What `save` wrote of one length. Errors: ArtifactError, ProgramError."""
    server = load_server(folder)
    return compiled_of(load_client(folder).for_length(), server.for_length(), server.plan)
