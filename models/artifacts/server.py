"""The server's part: programs and weights, and where the secret that masks the weights for clients lies; the helper's
part, without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ...approximations import Plan
from ..compile import Compiled
from ..lowering.structure import Structure
from .circuits import CircuitPart, read_circuit
from .client import ClientLength, load_client
from .layout import SECRET, find_part, read_json
from .tensors import CompiledLength, CompiledPart, read_lengths


@dataclass
class ServerLength(CompiledLength):
    """One program with its ring integers by name. Tensors that are equal in several lengths are the same objects."""

    weights: dict[str, Tensor] = field(repr=False)
    circuit: CircuitPart | None = field(default=None, repr=False)


@dataclass
class ServerPart(CompiledPart[ServerLength], Mapping[str, ServerLength]):
    """A mapping: hash of a program -> ServerLength. `model`: name, kind, parameters."""

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

    @property
    def secret_file(self) -> Path:
        """Where the secret lies from which the masks of the weights follow. A recompilation into
        the same folder keeps it."""
        return self.folder / SECRET


def load_server(folder: str | Path, tensors: dict[str, Tensor] | None = None) -> ServerPart:
    """The server's part of a compiled folder, DIR or DIR/server. `tensors`: as of StoredTensors.

    Errors: ArtifactError, ProgramError.
    """
    part = find_part(folder, "server")
    lengths = {
        number: ServerLength(
            **common, weights=read("weights", common["program"].factors()), circuit=read_circuit(part, number)
        )
        for number, common, _, read in read_lengths(part, tensors=tensors)
    }
    return ServerPart(part, lengths, Plan.load(part / "plan.json"), read_json(part / "model.json"))


HelperPart = CompiledPart[CompiledLength]
"""Programs and public constants. Nothing in it is anybody's secret."""


def load_helper(folder: str | Path, tensors: dict[str, Tensor] | None = None) -> HelperPart:
    """The helper's part of a compiled folder, DIR or DIR/helper. `tensors`: as of StoredTensors.

    Errors: ArtifactError, ProgramError.
    """
    part = find_part(folder, "helper")
    return CompiledPart(
        part, {number: CompiledLength(**common) for number, common, _, _ in read_lengths(part, tensors=tensors)}
    )


# A compiled model from the parts of both sides, for a process that may hold both.


def compiled_of(client: ClientLength, server: ServerLength, plan: Plan) -> Compiled:
    """It answers by output name: the form of the model's own output is not on disk."""
    nowhere = Structure(None, (), (), ())
    return Compiled(server.program, server.weights, server.constants, client.tensors, client.scales, plan, nowhere)


def load_compiled(folder: Path) -> Compiled:
    """What `save` wrote of one length. Errors: ArtifactError, ProgramError."""
    server = load_server(folder)
    return compiled_of(load_client(folder).for_length(), server.for_length(), server.plan)
