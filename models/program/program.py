"""The Program: a model as data. Single-assignment instructions over the operations of protocols/operations/.

It holds no weights and no code, serialises to JSON, has a content hash that the parties compare before any share is
sent, and can be priced, printed and executed without the model. What it makes public about a model: its architecture,
scales and the constants of its approximations (fitted to calibrated ranges).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from ...protocols.errors import BlindformerError
from ...protocols.operations import of_kind, operations
from ...protocols.operations.operation import SOURCE
from ...protocols.rounds import Graph

FORMAT = 5  # 5: whole digests of constants
_PIECE = 1 << 20  # numbers
Whole = Literal["bool", "uint8", "int8", "int16", "int32", "int64"]
_HASH = StringConstraints(pattern=r"^([0-9a-f]{64})?$")
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ProgramError(BlindformerError):
    """A program that cannot be read, or that a protocol cannot run."""


@dataclass(frozen=True, slots=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Instruction:
    """One instruction; its number in the program is its name.

    `scale`: fractional bits of the result. `width`: the low bits of it that matter to its readers.
    `bound`: the largest magnitude seen in calibration, as the next power of two; 0 of a weight.
    `path`: the module of the model it comes from, for prices and messages.
    """

    # Not a BaseModel: a conversation's program has 50,000, of 2 kB each.

    op: str
    args: tuple[int, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...]
    scale: int = 0
    width: int = 64
    bound: float = 0.0
    path: str = ""


class PreludeStep(BaseModel):
    """One step of the prelude, which the client runs in the clear: an ATen operation by name.

    Arguments are JSON; {"ref": name} stands for an earlier value, {"dtype": name} for a torch dtype.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    target: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class Program(BaseModel):
    """A compiled model at fixed shapes.

    `released`: parameters that clients have; `public`: those that every computing party has, among the constants.
    `types`: torch's, of the outputs that are whole numbers or bits.
    `client`, `known`: names of the client's values, and of what all parties compute when it runs, with the steps of the
    prelude that make them. `parts`: programs of one model that share its weights and what they keep (`state`); then it
    has no instructions of its own, and each run names its part. `tokens`: that a conversation may have, where its parts
    read the last ones alone; 0: as many as there is room for. `audits`: how much of its runs are audits, in which the
    server checks the client (parties/session/audits.py).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    model: str = ""
    ring: int = 64
    plan: Annotated[str, _HASH] = ""
    inputs: dict[str, tuple[int, ...]] = {}
    prelude: tuple[PreludeStep, ...] = ()
    client: dict[str, str] = {}
    known: dict[str, str] = {}
    instructions: tuple[Instruction, ...] = ()
    outputs: dict[str, int] = {}
    types: dict[str, Whole] = {}
    released: tuple[str, ...] = ()
    constants: dict[str, _Digest] = {}
    public: tuple[str, ...] = ()
    parts: dict[str, Program] = {}
    tokens: int = 0
    audits: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0

    def part(self, name: str) -> Program:
        """One of `parts`; "" is the program itself. Errors: ProgramError."""
        if not name and not self.parts:
            return self
        if name not in self.parts:
            raise ProgramError(f"program {self.model}: has no part {name!r}; it has {', '.join(self.parts) or 'none'}")
        return self.parts[name]

    def all_released(self) -> list[str]:
        """Names of the model's parameters that its parts release to clients."""
        return sorted({name for each in (self, *self.parts.values()) for name in each.released})

    def all_public(self) -> list[str]:
        """Names of the model's parameters that every computing party has."""
        return sorted({name for each in (self, *self.parts.values()) for name in each.public})

    def hash(self) -> str:
        """Content hash, hex. Two parties with the same hash run the same instructions."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        # Every session asks for it: in a process forked for one, serialising the program costs time and memory.
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @cached_property
    def graph(self) -> Graph:
        """Which instructions read which."""
        return Graph([item.args for item in self.instructions])

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Program:
        copied = super().model_copy(update=update, deep=deep)
        for cached in ("_digest", "graph"):  # it may be another program now
            vars(copied).pop(cached, None)
        return copied

    def to_json(self) -> str:
        return json.dumps(self.as_written(), sort_keys=True, separators=(",", ":"))

    def as_written(self) -> dict[str, Any]:
        """Without what most programs have none of, which are then written as they were before there was any."""
        none = (name for name in ("known", "types", "public", "tokens", "audits") if not getattr(self, name))
        fields = self.model_dump(mode="json", exclude={"parts", *none})
        parts = {name: part.as_written() for name, part in self.parts.items()}
        return {**fields, "parts": parts} if parts else fields

    @classmethod
    def from_json(cls, text: str | bytes) -> Program:
        try:
            program = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ProgramError(f"program: {where}: {first['msg']}; compile the model again") from None
        if program.format != FORMAT:
            raise ProgramError(
                f"program: format {program.format}, this version reads {FORMAT}; compile the model again"
            )
        program.check()
        return program

    @classmethod
    def load(cls, path: str | Path) -> Program:
        try:
            return cls.from_json(Path(path).read_bytes())
        except OSError as error:
            raise ProgramError(f"program {path}: {error.strerror}; give the folder that compile wrote") from None

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json())

    def check(self) -> None:
        """Refuse a program that is not single assignment, uses unknown operations, or tells results to others.

        Who compiles a program need not own the data: a result that went to the server could be the input itself.
        """
        for part in self.parts.values():
            part.check()
        if self.audits and (self.parts or self.needs() & {"client", "keep", "state"}):
            # An audit gives the server the client's masks: of what it knows in the clear, or of kept rows, never.
            raise ProgramError("program: has audits, and values that an audit would reveal; compile the model again")
        known = operations()
        for number, item in enumerate(self.instructions):
            if item.op not in known:
                raise ProgramError(
                    f"program: instruction {number}: operation {item.op} is not known; update blindformer"
                )
            if any(not 0 <= arg < number for arg in item.args):
                raise ProgramError(f"program: instruction {number}: reads a value that does not exist yet")
            if not 0 < item.width <= 64:
                raise ProgramError(f"program: instruction {number}: {item.op} of a number of bits that no ring has")
            if problem := known[item.op].problem(item.attributes):
                raise ProgramError(f"program: instruction {number}: {problem}")
        if any(not 0 <= number < len(self.instructions) for number in self.outputs.values()):
            raise ProgramError("program: an output does not exist")
        sources: dict[str, tuple[str, tuple[int, ...]]] = {}
        for part in (self, *self.parts.values()):
            part._check_sources(sources)

    def _check_sources(self, sources: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        """Add this part's sources. Errors: ProgramError for a name of two values: parts share weights alone."""
        kinds = of_kind(SOURCE)
        for number, item in enumerate(self.instructions):
            if item.op in kinds:
                name, source = item.attributes["name"], (item.op, item.shape if item.op == "weight" else ())
                other = sources.setdefault(name, source)
                if other != source:
                    what = f"{name} is a {item.op}, and elsewhere another {other[0]}"
                    raise ProgramError(f"program: instruction {number}: {what}; compile the model again")

    def needs(self) -> set[str]:
        return {item.op for item in self.instructions}.union(*(part.needs() for part in self.parts.values()))

    def factors(self) -> set[str]:
        """Weights, and constants, that only linear products multiply by: these take integers of any width, and a row
        by a matrix takes as long as reading it."""
        factors: set[str] = set()
        others: set[str] = set()
        for part in self.parts.values() or (self,):
            known = (n for n, item in enumerate(part.instructions) if item.op in ("weight", "constant"))
            names = {n: part.instructions[n].attributes["name"] for n in known}
            for item in part.instructions:
                for place, arg in enumerate(item.args):
                    if arg in names:
                        (factors if item.op == "linear" and place == 1 else others).add(names[arg])
        return factors - others

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Weights that take part in a product with a secret, whose masked form the client holds."""
        shapes, private = {}, of_kind("private")
        for part in self.parts.values():
            shapes |= part.weight_shapes()
        for item in self.instructions:
            if item.op in private:
                source = self.instructions[item.args[1]]
                if source.op == "weight":
                    shapes[source.attributes["name"]] = source.shape
        return shapes


def constant_digest(integers: Tensor) -> str:
    """What a program says of a public constant: all of SHA-256, of its integers as int64, however narrow they are held.

    Half of it would not do: who compiles the model could find two constants of one digest, and give parties both.
    """
    digest = hashlib.sha256()
    for piece in integers.reshape(-1).split(_PIECE):  # all of them as int64 would be eight times a large weight
        digest.update(piece.long().contiguous().numpy().data)
    return digest.hexdigest()


def check_offers(program: Program, protocol: Any) -> None:
    """Refuse a program that needs what a protocol does not offer, naming the first module that needs it."""
    for item in program.instructions:
        if item.op not in protocol.supported_operations:
            raise ProgramError(
                f"{item.path or 'program'}: needs the operation {item.op}, which protocol {protocol.name} "
                "does not offer; choose another plan or protocol"
            )
