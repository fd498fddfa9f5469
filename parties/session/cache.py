"""Masked weights that a client keeps on disk, so that it downloads them once: a file for each weight, named by its id.

They are uniform, so the folder holds no secret. What does not have the hash that the server names is downloaded again.
Beside them lies for each set of weights whose they are, in a file named by the set's id.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...files import whole_file
from .weights import CatalogueLine, as_tensor, catalogue_id

_ID = "[0-9a-f]{32}"
_FILES = re.compile(rf"{_ID}(\.json)?(\.[0-9a-f]{{16}}\.part)?")  # of all that is kept here, and of its parts


@dataclass(frozen=True)
class MaskedModel:
    """The masked weights of one model. `folder`: the part of it that this party has; `weights`: ids; `used`: seconds
    since 1970."""

    name: str
    folder: str
    weights: tuple[str, ...]
    file: Path
    used: float

    @property
    def files(self) -> list[Path]:
        return [self.file, *(self.file.with_name(weight) for weight in self.weights)]


class MaskedCache:
    """In `folder`; shared by any number of processes. `part`: the folder of the model's part, which is noted."""

    def __init__(self, folder: Path, part: Path | None = None) -> None:
        self.folder, self.part = folder, part

    def note(self, model: str, lines: Sequence[CatalogueLine]) -> None:
        """Whose these weights are, and that they are used now."""
        about = {
            "model": model,
            "folder": "" if self.part is None else str(self.part.absolute()),
            "weights": sorted(line.id for line in lines),
        }
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            with whole_file(self.folder / f"{catalogue_id(list(lines))}.json", 0o666) as stream:
                stream.write(json.dumps(about).encode())

    def load(self, line: CatalogueLine) -> Tensor | None:
        """Mapped from the disk, so processes share its memory; None if it is not there, or not what it should be."""
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
        """Warns, and goes on without, where the disk does not take it."""
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
    """Whose masked weights are kept in `folder`. What cannot be read is left out."""
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
    """All that a MaskedCache has written into `folder`, and nobody else."""
    return sorted(path for path in folder.glob("*") if _FILES.fullmatch(path.name) and path.is_file())
