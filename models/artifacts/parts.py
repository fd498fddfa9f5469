"""Parts of a program that has several, on disk: their public numbers, and what the parties' preludes read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..compile import Compiled, decode_outputs, encode_client
from ..lowering.client_graph import behind
from ..program.program import Program
from .tensors import Tensors, named, public_constants


@dataclass
class ProgramPart:
    """`tensors`: what the prelude reads; at the server, only of what all parties compute."""

    program: Program
    tensors: dict[str, Tensor] = field(repr=False)
    constants: dict[str, Tensor] = field(repr=False)
    scales: dict[str, int] = field(repr=False)

    def encode_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The client's sources of one run."""
        return encode_client(self.program, self.tensors, self.scales, inputs)

    def encode_known(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What all parties compute for one run."""
        return encode_client(self.program, self.tensors, self.scales, inputs, self.program.known)

    def decode(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Ring results -> float32 tensors by output name. Errors: AnswerOutOfRange."""
        return decode_outputs(self.program, outputs)


def part_names(tensors: Tensors, compiled: Compiled, known: bool) -> dict[str, Any]:
    """What tensors.json says of the parts. `known`: only what all parties may have."""
    entries = {}
    for name, part in compiled.parts.items():
        wanted = behind(part.program.prelude, part.program.known.values())
        released = {n: t for n, t in part.client_tensors.items() if not known or n in wanted}
        entries[name] = {
            "released": tensors.add(released, ring=False),
            "constants": tensors.add(part.constants, ring=True),
            "scales": {n: s for n, s in part.client_scales.items() if not known or n in part.program.known},
        }
    return entries


def read_parts(
    program: Program, names: Mapping[str, Any], tensors: dict[str, Tensor], file: Path
) -> dict[str, ProgramPart]:
    """As `part_names` wrote them. Errors: ArtifactError."""
    return {
        name: ProgramPart(
            program.part(name),
            named(tensors, its["released"], file),
            public_constants(tensors, its["constants"], file, program.part(name)),
            its["scales"],
        )
        for name, its in names.items()
    }
