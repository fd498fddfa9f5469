"""Masked weights that a client keeps on disk, so that it downloads them once: a file for each weight, named by its id.

They are uniform, so the folder holds no secret. What does not have the hash that the server names is downloaded again.
"""

from __future__ import annotations

import hashlib
import mmap
import warnings
from pathlib import Path

import torch
from torch import Tensor

from ...files import whole_file
from .weights import CatalogueLine, as_tensor


class MaskedCache:
    """In `folder`; shared by any number of processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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
