"""SEAL's objects as bytes. Its Python binding reads and writes files alone, so these lie in memory, or are private."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .sealed import SealedError


def to_bytes(sealed: Any) -> bytes:
    """Whatever has SEAL's `save`."""
    with _file() as path:
        sealed.save(path)
        return Path(path).read_bytes()


def from_bytes(kind: Callable[[], Any], context: Any, data: bytes, what: str) -> Any:
    """An object of SEAL's from bytes that check_sealed has walked. Its values are held to the parameters.

    Errors: SealedError.
    """
    with _file() as path:
        Path(path).write_bytes(data)
        instance = kind()
        try:
            instance.load(context, path)
        except (RuntimeError, ValueError, IndexError, MemoryError, OverflowError):
            raise SealedError(f"{what}: is damaged, or of other parameters") from None
    return instance


@contextmanager
def _file() -> Iterator[str]:
    """The path of a file in memory; where there is no such thing, of one that only this user reads."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("seal")
        try:
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    with tempfile.TemporaryDirectory(prefix="blindformer-") as folder:  # mode 0700
        yield str(Path(folder) / "seal")
