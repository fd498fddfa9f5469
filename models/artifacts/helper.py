"""The helper's part: programs and public constants. Nothing in it is anybody's secret."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..program.program import Program
from .layout import TENSORS, find_part, length_folder, only, read_json, read_programs
from .parts import ProgramPart, read_parts
from .tensors import public_constants, read_tensors


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
    tensors, lengths = read_tensors(part / TENSORS), {}
    for number, program in read_programs(part).items():
        file = length_folder(part, number) / "tensors.json"
        names = read_json(file)
        parts = read_parts(program, names["parts"], tensors, file)
        lengths[number] = HelperLength(program, public_constants(tensors, names["constants"], file, program), parts)
    return HelperPart(part, lengths)
