"""The server's weights, masked: D = W - B goes to the client once, and stays the same over all sessions.

Each weight has a mask of its own, whose key follows from the server's secret, the weight's name and its content: other
weights never meet the same mask, and one weight that programs of several lengths share is downloaded once. The dealer
gets the keys, the client the difference; either alone is uniform.

The secret is a seed in a file of the server, kept as long as the weights are. A party that knows the secret and a
client's masked weights knows the weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...files import whole_file
from ...models.program.correlations import Correlations
from ...models.program.pricing import price
from ...models.program.program import Program
from ...protocols.beaver.source import Corrections, Pause
from ...protocols.beaver.values import Tape
from ...protocols.channel import Channel
from ...protocols.crypten.engine import Owners
from ...protocols.devices import CPU, Placement, check_room, settle
from ...protocols.errors import BlindformerError
from ...protocols.states import KeptStates
from ...protocols.streams import SEED_BYTES, Stream, derive, new_seed
from ...protocols.wire import elements, pack
from .preprocessed import masks

_WIDENED = 2  # times what travels: numbers of 5 bytes and the like are held in 8
_OLD_BYTES = 16  # of earlier versions; still safe, since an attacker gains one server by finding one


class SecretError(BlindformerError):
    """The server's secret cannot be read, or others can read it."""


def load_secret(path: Path | str) -> bytes:
    """The secret in the file at `path`; made on the first use, readable only by its owner.

    Two processes that make it at the same moment get the same secret. Errors: `SecretError`.
    """
    path = Path(path)
    with contextlib.suppress(FileExistsError):
        if not path.exists():
            _make(path)
    return _read(path)


def _make(path: Path) -> None:
    """Make the file: it is complete, and closed to others, when it gets its name. Errors: FileExistsError."""
    try:
        with whole_file(path, durable=True, new=True) as stream:
            stream.write(new_seed().hex().encode() + b"\n")
    except FileExistsError:
        raise
    except OSError as error:
        remedy = "give the server a folder that it may write to, with space left"
        raise SecretError(f"{path}: cannot be written ({error.strerror}); {remedy}") from None


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            status = os.fstat(stream.fileno())
            content = stream.read(4 * SEED_BYTES)
    except OSError as error:
        raise SecretError(f"{path}: cannot be read ({error.strerror}); run as the user that owns it") from None
    if os.name == "posix" and status.st_mode & 0o077:
        raise SecretError(f"{path}: can be read by other users; run: chmod 600 {path}")
    try:
        secret = bytes.fromhex(content.decode())
    except ValueError:
        secret = b""
    if len(secret) not in (SEED_BYTES, _OLD_BYTES):
        remedy = "restore it, or remove it: a new one is made, and clients download the masked weights again"
        raise SecretError(f"{path}: is damaged; {remedy}")
    return secret


ELEMENT_BYTES = 8
ID_BYTES, HASH_BYTES, SALT_BYTES = 16, 32, 32
LINE_BYTES = ID_BYTES + HASH_BYTES  # of the catalogue, for one weight

Shape = tuple[int, ...]


class PublicPart(Protocol):
    """The part of one program that any computing party has: `constants` are ring integers by name."""

    @property
    def constants(self) -> Mapping[str, Tensor]: ...
    @property
    def parts(self) -> Mapping[str, Part]: ...


class ServedPart(PublicPart, Protocol):
    """The server's part: `weights` are ring integers by name, too."""

    @property
    def program(self) -> Program: ...
    @property
    def weights(self) -> Mapping[str, Tensor]: ...


class Part(Protocol):
    """One of the parts of a program that has several."""

    @property
    def constants(self) -> Mapping[str, Tensor]: ...
    def encode_known(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The values that all parties compute for one run."""
        ...


def constants_of(model: PublicPart, part: str, rows: int) -> Mapping[str, Tensor]:
    """The public numbers of a run, with those that depend on the number of rows kept."""
    if not part:
        return model.constants
    return {**model.parts[part].constants, **model.parts[part].encode_known({"rows": torch.tensor([rows])})}


@dataclass(frozen=True)
class CatalogueLine:
    """One weight in the catalogue: its name and shape, which the program tells, an id and the hash of D, as hex."""

    name: str
    shape: Shape
    id: str
    sha256: str

    @property
    def bytes(self) -> int:
        return elements(self.shape) * ELEMENT_BYTES


@dataclass(frozen=True)
class Catalogue:
    """All masked weights of a program, as the server names them to who gets them.

    `salt`: of 32 bytes, which only the server and those who get the masked weights know. The dealer knows all masks and
    ids: without a salt it could try, by the printed commitment, which of a few weights these are. No weights, no salt.
    """

    lines: tuple[CatalogueLine, ...]
    salt: bytes

    @cached_property
    def commitment(self) -> str:
        """SHA-256 (hex) of the catalogue: of the salt, and of the ids and hashes of all D. Whoever has the same has the
        same D."""
        return hashlib.sha256(self.packed()).hexdigest()

    def packed(self) -> bytes:
        """As it travels."""
        return self.salt + _packed(self.lines)

    @staticmethod
    def size(shapes: Mapping[str, Shape]) -> int:
        """Bytes of a program's catalogue."""
        return SALT_BYTES * bool(shapes) + LINE_BYTES * len(shapes)

    @classmethod
    def read(cls, data: bytes | bytearray, shapes: Mapping[str, Shape]) -> Catalogue:
        """The catalogue of a program's weights, as the client receives it."""
        start, lines = SALT_BYTES * bool(shapes), []
        for at, (name, shape) in enumerate(sorted(shapes.items())):
            line = data[start + at * LINE_BYTES :][:LINE_BYTES]
            lines.append(CatalogueLine(name, shape, line[:ID_BYTES].hex(), line[ID_BYTES:].hex()))
        return cls(tuple(lines), bytes(data[:start]))


def _packed(lines: Iterable[CatalogueLine]) -> bytes:
    return b"".join(bytes.fromhex(line.id + line.sha256) for line in lines)


def weight_keys(secret: bytes, weights: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, bytes]:
    """The keys of the masks B, bound to the content of the weights."""
    keys = {}
    for name in names:
        digest = hashlib.sha256(str(tuple(weights[name].shape)).encode() + b"\0")
        digest.update(weights[name].long().contiguous().numpy().tobytes())
        keys[name] = derive(secret, f"weight {name} {digest.hexdigest()}")
    return keys


def weight_mask(key: bytes, shape: Shape, device: torch.device = CPU) -> Tensor:
    """B of one weight."""
    return Stream(key, "weight mask", device).integers("B", shape)


class WeightMasks(Mapping[str, Tensor]):
    """All B of a program, each made when it is read: they are large, and quickly made again. A GPU, to which they would
    travel each time, keeps them."""

    def __init__(self, keys: Mapping[str, bytes], shapes: Mapping[str, Shape], device: torch.device = CPU) -> None:
        self._keys, self._shapes, self._device = keys, shapes, device
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if self._device == CPU:
            return weight_mask(self._keys[name], self._shapes[name])
        if name not in self._kept:
            self._kept[name] = weight_mask(self._keys[name], self._shapes[name], self._device)
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)


class MaskedWeights:
    """D of one program at the server, made weight by weight when it is read."""

    def __init__(self, program: Program, weights: Mapping[str, Tensor], secret: bytes) -> None:
        self._weights = weights
        self._shapes = dict(sorted(program.weight_shapes().items()))
        self.keys = weight_keys(secret, weights, self._shapes)
        self._salts = derive(secret, "salts")

    @cached_property
    def catalogue(self) -> Catalogue:
        """The first read takes a pass over all weights. The salt follows from all D, so each model has its own."""
        lines = tuple(
            CatalogueLine(
                name,
                shape,
                derive(self.keys[name], "id")[:ID_BYTES].hex(),
                hashlib.sha256(self.packed(name)).hexdigest(),
            )
            for name, shape in self._shapes.items()
        )
        salt = derive(self._salts, hashlib.sha256(_packed(lines)).hexdigest())[:SALT_BYTES] if lines else b""
        return Catalogue(lines, salt)

    def packed(self, name: str) -> bytearray:
        """One D as it travels."""
        masked = self._weights[name] - weight_mask(self.keys[name], self._shapes[name])
        return pack([(masked, ELEMENT_BYTES)], masked.numel() * ELEMENT_BYTES)

    def all_keys(self) -> bytes:
        """For the dealer, in the order of the names."""
        return b"".join(self.keys.values())


def read_keys(data: bytes | bytearray, shapes: Mapping[str, Shape]) -> dict[str, bytes]:
    """The keys of a program's weights, as the dealer receives them."""
    return {name: bytes(data[at * SEED_BYTES : (at + 1) * SEED_BYTES]) for at, name in enumerate(sorted(shapes))}


class Served:
    """One program at its model's owner: its part of the artifacts, and the masked weights for the others.

    `owners`: of the data, among N parties (models/program/correlations.py). `device`: where it computes.
    """

    def __init__(
        self, part: ServedPart, secret: bytes, owners: Owners | None = None, device: torch.device = CPU
    ) -> None:
        self.program, self.weights, self.constants = part.program, part.weights, part.constants
        self.parts, self.owners, self.device = part.parts, owners, device
        self.masked = MaskedWeights(part.program, part.weights, secret)

    def correlations(self, part: str = "", runs: int = 1) -> Correlations:
        return Correlations(self.program.part(part), self.owners, runs)

    def lead(
        self,
        key: bytes,
        dealt: Channel,
        correlations: Correlations,
        states: KeptStates | None = None,
        pause: Pause | None = None,
    ) -> list[Tape]:
        """The leader's correlations of a query, run by run, with masks of this key, on the corrections dealt. `pause`:
        as of `Corrections`."""
        corrections = Corrections(dealt, correlations.layout, pause, self.device)
        tape = correlations.lead(masks(key, self.device), corrections, states)
        settle(self.device)
        return correlations.tapes(tape)

    @cached_property
    def place(self) -> Placement:
        """Has the weights where it computes. Errors: DeviceError."""
        return placement(self.program, self.weights, self.device)

    def prepare(self) -> None:
        """Compute now what the first client would wait for: a supervisor calls this before it forks."""
        _ = self.masked.catalogue.commitment
        for part in self.program.parts or ("",):
            _ = self.correlations(part).layout
            price(self.program.part(part))


def placement(program: Program, weights: Mapping[str, Tensor], device: torch.device) -> Placement:
    """A party's weights on its device, where there is room for a query, too. Errors: DeviceError."""
    if device != CPU:
        query = max(price(program.part(name)).held_bytes for name in program.parts or ("",))
        needed = sum(weight.nbytes for weight in weights.values()) + _WIDENED * query
        check_room(needed, device, f"the weights of {program.model or 'this model'} and the correlations of a query")
    place = Placement(device)
    place(weights)
    return place


def serve_parts(parts: Iterable[ServedPart], secret: bytes, device: torch.device = CPU) -> dict[str, Served]:
    """The programs that a server serves, by hash."""
    return {part.program.hash(): Served(part, secret, device=device) for part in parts}


def as_tensor(data: bytearray | mmap, shape: Shape) -> Tensor:
    """D as it travelled, as a tensor over the same memory."""
    if not len(data):
        return torch.empty(shape, dtype=torch.int64)
    return torch.frombuffer(data, dtype=torch.int64).reshape(shape)
