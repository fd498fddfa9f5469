"""Tensors on disk under the digest of their content: what several lengths share is stored once, and loaded once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...protocols.ring import narrowed
from ..compile import Compiled, decode_outputs, encode_client
from ..loudness import Level
from ..lowering.client_graph import behind
from ..program.program import Program, constant_digest
from .layout import APART, LARGE, TENSORS, ArtifactError, length_folder, only, read_json, read_programs, versions

_RING = "ring-"  # integers of the ring: stored as narrow as they are


class Tensors:
    """What is written together. `add` gives each tensor its name in the file."""

    def __init__(self) -> None:
        self.held: dict[str, Tensor] = {}

    def add(self, tensors: Mapping[str, Tensor], ring: bool) -> dict[str, str]:
        """Take tensors in (`ring`: int64 ring integers) and return the digest of each by its name."""
        digests = {}
        for name, tensor in tensors.items():
            flat = tensor.detach().contiguous()
            stored = narrowed(flat) if ring else flat
            digests[name] = (_RING if ring else "") + content_digest(stored)
            if digests[name] not in self.held:
                self.held[digests[name]] = stored.clone()
        return digests

    def write(self, part: Path) -> list[Path]:
        """Returns the files: one for each large tensor, and one for all others."""
        large = {digest for digest, tensor in self.held.items() if tensor.nbytes >= LARGE}
        files = {part / TENSORS: {digest: self.held[digest] for digest in self.held.keys() - large}}
        files |= {part / APART / f"{digest}.safetensors": {digest: self.held[digest]} for digest in large}
        if large:
            (part / APART).mkdir()
        for file, tensors in files.items():
            save_file(tensors, file)
        return list(files)


class StoredTensors:
    """All tensors of a part, by digest; they are mapped, so what nobody reads takes no memory. Errors: ArtifactError.

    computing   whether its party multiplies by the public weights; one that does not has the other constants alone
    tensors     of other parts, by digest: what this part has, too, is read once, and the others are added. Parts need
                not trust each other: only tensors whose content has the digest get there
    """

    def __init__(self, part: Path, computing: bool = True, tensors: dict[str, Tensor] | None = None) -> None:
        self.computing = computing
        self._tensors = {} if tensors is None else tensors
        self._read = dict[str, Tensor]()  # from this part's files, unchecked
        self._digests: dict[str, str] = {}  # of constants, which several programs have
        large = [name for name in map(Path, versions(part)["files"]) if name.parent == Path(APART)]
        for name in (TENSORS, *(name for name in large if name.stem not in self._tensors)):
            try:
                self._read |= load_file(part / name)
            except (OSError, SafetensorError) as error:
                raise ArtifactError(f"{part / name}: cannot be read ({error}); compile the model again") from None

    def named(self, names: Mapping[str, str], file: Path, narrow: Collection[str] = ()) -> dict[str, Tensor]:
        """The tensors of one length by name, integers of the ring as int64 but for the `narrow` ones."""
        for name, digest in names.items():
            if digest not in self._tensors:
                self._tensors[digest] = self._checked(name, digest, file)
            if digest.startswith(_RING) and name not in narrow:
                self._tensors[digest] = self._tensors[digest].long()  # in its place: equal tensors are one object
        return {name: self._tensors[digest] for name, digest in names.items()}

    def _checked(self, name: str, digest: str, file: Path) -> Tensor:
        """A tensor of this part's files whose content has the digest."""
        if digest not in self._read:
            raise ArtifactError(f"{file}: names a tensor that is not there ({name}); compile the model again")
        if content_digest(self._read[digest]) != digest.removeprefix(_RING):
            raise ArtifactError(f"{file}: {name} is not the tensor of its digest; compile the model again")
        return self._read.pop(digest)

    def constants(self, names: Mapping[str, str], file: Path, program: Program) -> dict[str, Tensor]:
        """A program's public constants, each the one that the program names: other parties have the same ones. Those
        that matrices are multiplied by stay as narrow as they are stored."""
        factors = program.factors()
        left = frozenset() if self.computing else factors
        constants = self.named({n: digest for n, digest in names.items() if n not in left}, file, factors)
        for name in sorted((names.keys() | program.constants.keys()) - left):
            digest = program.constants.get(name)
            if name not in constants or self._digest(names[name], constants[name]) != digest:
                raise ArtifactError(f"{file}: constant {name} is not the one of the program; compile the model again")
        return constants

    def _digest(self, stored: str, constant: Tensor) -> str:
        if stored not in self._digests:
            self._digests[stored] = constant_digest(constant)
        return self._digests[stored]


def content_digest(tensor: Tensor) -> str:
    """All of SHA-256, of the type, the shape and the numbers."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    if tensor.numel():
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# Parts of a program that has several, on disk: their public numbers, and what the parties' preludes read.


@dataclass
class ProgramPart:
    """`tensors`: what the prelude reads; at the server, only of what all parties compute."""

    program: Program
    tensors: dict[str, Tensor] = field(repr=False)
    constants: dict[str, Tensor] = field(repr=False)
    scales: dict[str, int] = field(repr=False)
    levels: dict[str, Level] = field(repr=False)

    def encode_inputs(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The client's sources of one run."""
        return encode_client(self.program, self.tensors, self.scales, inputs, levels=self.levels)

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
            "levels": {} if known else part.levels,
        }
    return entries


def read_parts(program: Program, names: Mapping[str, Any], stored: StoredTensors, file: Path) -> dict[str, ProgramPart]:
    """As `part_names` wrote them. Errors: ArtifactError."""
    return {
        name: ProgramPart(
            program.part(name),
            stored.named(its["released"], file),
            stored.constants(its["constants"], file, program.part(name)),
            its["scales"],
            its.get("levels", {}),
        )
        for name, its in names.items()
    }


@dataclass
class CompiledLength:
    """One program, as compiled, with its public ring integers by name: what every party has of a length."""

    program: Program
    constants: dict[str, Tensor] = field(repr=False)
    parts: dict[str, ProgramPart] = field(repr=False)


Length = TypeVar("Length", bound=CompiledLength)


@dataclass
class CompiledPart(Generic[Length]):
    """One party's part of a compiled model. `lengths`: by number of tokens, the shortest first; {0: ...} for images."""

    folder: Path
    lengths: dict[int, Length]

    def for_length(self, length: int | None = None) -> Length:
        """None: the only one there is. Errors: ArtifactError."""
        return only(self.lengths, length, self.folder)


def read_lengths(
    part: Path, computing: bool = True, tensors: dict[str, Tensor] | None = None
) -> Iterator[tuple[int, dict[str, Any], dict[str, Any], Callable[..., dict[str, Tensor]]]]:
    """(length, the fields of CompiledLength, what tensors.json says, the tensors of one of its keys) of each length.
    `computing`, `tensors`: as of StoredTensors.

    Errors: ArtifactError, ProgramError.
    """
    stored = StoredTensors(part, computing, tensors)
    for number, program in read_programs(part).items():
        file = length_folder(part, number) / "tensors.json"
        names = read_json(file)
        common = {
            "program": program,
            "constants": stored.constants(names["constants"], file, program),
            "parts": read_parts(program, names.get("parts", {}), stored, file),
        }

        def read(key: str, *wide: Any, names: dict[str, Any] = names, file: Path = file) -> dict[str, Tensor]:
            optional = key == "circuit"  # of what was compiled for ciphertexts
            return stored.named(names.get(key, {}) if optional else names[key], file, *wide)

        yield number, common, names, read
