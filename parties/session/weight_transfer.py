"""The masked weights go from the model's owner, the leader, to the other parties, unless these have them on disk.

A client's cache has a file for each weight, named by the weight's id. Masked weights are uniform, so the folder holds
no secret. A file that does not have the hash that the server names is downloaded again. For each set of weights a file
named by the commitment to them says which model they belong to.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...files import whole_file
from ...models.program.program import Program
from ...protocols.channel import Channel
from ...protocols.crypten.mesh import Mesh, Parcels
from ...protocols.errors import PeerDisagrees, PeerProtocolError
from .masked_weights import Catalogue, CatalogueLine, MaskedWeights, as_tensor
from .messages import SAME_VERSION, Waiting, receive_expected

_ID = "[0-9a-f]{32}"
_FILES = re.compile(rf"({_ID}){{1,2}}(\.json)?(\.[0-9a-f]{{16}}\.part)?")  # of all that is kept here, and of its parts


@dataclass(frozen=True)
class MaskedModel:
    """The masked weights of one model. `folder`: of this party's part; `weights`: ids; `used`: seconds since 1970."""

    name: str
    folder: str
    weights: tuple[str, ...]
    file: Path
    used: float

    @property
    def files(self) -> list[Path]:
        return [self.file, *(self.file.with_name(weight) for weight in self.weights)]


class MaskedCache:
    """The cache in `folder`, shared by any number of processes. `part`: the folder of the model's part, to be noted."""

    def __init__(self, folder: Path, part: Path | None = None) -> None:
        self.folder, self.part = folder, part

    def note(self, model: str, catalogue: Catalogue) -> None:
        """Note which model these weights belong to, and that they are used now."""
        about = {
            "model": model,
            "folder": "" if self.part is None else str(self.part.absolute()),
            "weights": sorted(line.id for line in catalogue.lines),
        }
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self.folder / f"{catalogue.commitment}.json", 0o666) as stream:
                stream.write(json.dumps(about).encode())

    def load(self, line: CatalogueLine) -> Tensor | None:
        """The weight, mapped from the disk so that processes share it; None if it is missing or has another hash."""
        path = self.folder / line.id
        try:
            if path.stat().st_size != line.bytes:
                return None
            if not line.bytes:
                return torch.empty(line.shape, dtype=torch.int64)
            with path.open("rb") as stream:
                content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError:
            return None
        return as_tensor(content, line.shape) if hashlib.sha256(content).hexdigest() == line.sha256 else None

    def keep(self, line: CatalogueLine, content: bytes | bytearray) -> None:
        """Write one weight. If the disk does not take it, warn and go on without."""
        path = self.folder / line.id
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(path, 0o666, durable=True) as stream:
                stream.write(content)
        except OSError as error:
            warnings.warn(
                f"{path}: masked weights cannot be kept ({error.strerror}); they are downloaded again next time",
                stacklevel=2,
            )


def masked_models(folder: Path) -> list[MaskedModel]:
    """The models whose masked weights are in `folder`. Files that cannot be read are left out."""
    models = []
    for file in masked_files(folder):
        if file.suffix != ".json":
            continue
        with suppress(OSError, ValueError, KeyError, TypeError):
            about = json.loads(file.read_text(encoding="utf-8"))
            weights = tuple(str(weight) for weight in about["weights"] if re.fullmatch(_ID, weight))
            models.append(MaskedModel(str(about["model"]), str(about["folder"]), weights, file, file.stat().st_mtime))
    return models


def masked_files(folder: Path) -> list[Path]:
    """The files in `folder` that a MaskedCache has written."""
    return sorted(path for path in folder.glob("*") if _FILES.fullmatch(path.name) and path.is_file())


def send_weights(masked: MaskedWeights, others: Mesh, **offer: object) -> int:
    """Offer the masked weights to all other parties, and send each those that it lacks. Returns the bytes sent.

    `offer`: more fields of the offer's message. Errors: `PeerError`.
    """
    for channel in others.channels.values():
        channel.send_message({"weights": masked.catalogue.commitment, **offer})
        channel.send(masked.catalogue.packed())
    wanted = {rank: channel.recv(len(masked.catalogue.lines)) for rank, channel in others.channels.items()}
    sent = 0
    for at, line in enumerate(masked.catalogue.lines):
        takers = [rank for rank, flags in wanted.items() if flags[at]]
        if takers:
            packed = masked.packed(line.name)
            others.exchange({rank: Parcels(send=[packed]) for rank in takers})
            sent += len(packed) * len(takers)
    return sent


class ReceivedWeights:
    """The masked weights that `leader` sends, with those that are in `cache`. `masked`: by name; `commitment`: to
    them all; `offer`: the leader's message; `downloaded`: bytes. `expected`: their commitment; empty: any is welcome.
    Without a dealer the leader has no masks, and this side's part of a weight is 0 (not `masked`). Errors of all
    methods: `PeerError`."""

    def __init__(
        self,
        leader: Channel,
        program: Program,
        cache: MaskedCache | None = None,
        expected: str = "",
        masked: bool = True,
    ) -> None:
        self.expected, self._zeros = expected, not masked
        self.masked: dict[str, Tensor] = {}
        self.commitment, self.downloaded, self.offer = "", 0, dict[str, Any]()
        self._leader, self._model, self._shapes = leader, program.model, program.weight_shapes()
        self._cache = cache

    def receive(self, waiting: Waiting | None = None, progress: Callable[[int, int], None] | None = None) -> None:
        """Get all weights. `progress(done, total)` counts the downloads."""
        self.offer = receive_expected(self._leader, ("weights",), waiting)
        catalogue = Catalogue.read(self._leader.recv(Catalogue.size(self._shapes)), self._shapes)
        lines, self.commitment = catalogue.lines, catalogue.commitment
        if self.offer["weights"] != self.commitment:
            raise PeerProtocolError(self._leader.peer, "names other weights than it lists", SAME_VERSION)
        if self.expected not in ("", self.commitment):
            what = f"has weights of commitment {self.commitment}, and {self.expected} is expected"
            raise PeerDisagrees(self._leader.peer, what, "ask its operator which model it serves")
        if self._zeros:
            nothing = torch.zeros((), dtype=torch.int64)
            self.masked = {line.name: nothing.expand(line.shape) for line in lines}
        elif self._cache is not None:
            self._cache.note(self._model, catalogue)
            kept = {line.name: self._cache.load(line) for line in lines}
            self.masked = {name: weight for name, weight in kept.items() if weight is not None}
        missing = [line for line in lines if line.name not in self.masked]
        self._leader.send(bytes(line in missing for line in lines))
        for done, line in enumerate(missing, start=1):
            self.masked[line.name] = self._download(line)
            if progress:
                progress(done, len(missing))

    def _download(self, line: CatalogueLine) -> Tensor:
        content = self._leader.recv(line.bytes)
        if hashlib.sha256(content).hexdigest() != line.sha256:
            raise PeerProtocolError(self._leader.peer, "sent other weights than it announced", SAME_VERSION)
        self.downloaded += line.bytes
        if self._cache is not None:
            self._cache.keep(line, content)
        return as_tensor(content, line.shape)
