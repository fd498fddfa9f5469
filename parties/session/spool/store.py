"""Files of corrections: whole and on the disk before they have their name, and gone as soon as they are opened."""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ....files import sync, whole_file
from .ledger import SpoolError

_NAMES = re.compile(r"[0-9a-f]{32}/[0-9]+(\.[0-9a-f]{16}\.part)?")  # of what is written here, and of its parts
SPARE_BYTES = 64 * 2**20  # of the disk, for everybody else


class Store:
    """The files of one spool, named `<session>/<number>` under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, frames: Iterable[bytes | bytearray | memoryview]) -> tuple[int, str]:
        """Write one file; returns (bytes, SHA-256 as hex). Nothing is left of it after an error.

        Errors: `SpoolError` when the disk does not take it; those of `frames`.
        """
        path, size, digest = self.folder / name, 0, hashlib.sha256()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with whole_file(path, durable=True) as stream:
                for frame in frames:
                    stream.write(frame)
                    digest.update(frame)
                    size += len(frame)
            sync(self.folder)
        except OSError as error:
            path.unlink(missing_ok=True)
            what = f"cannot be written ({error.strerror}); free space, or use another folder"
            raise SpoolError(path, what) from None
        return size, digest.hexdigest()

    def open_once(self, name: str, size: int, sha256: str) -> mmap.mmap | bytes:
        """The content of a file, which is removed: nobody opens it again.

        Errors: `SpoolError` if it is missing or not what was written.
        """
        path = self.folder / name
        remedy = "these correlations are spent, no others: ask again"
        try:
            with path.open("rb") as stream:
                path.unlink()
                found = os.fstat(stream.fileno()).st_size
                content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) if found else b""
        except OSError as error:
            raise SpoolError(path, f"cannot be read ({error.strerror}); {remedy}") from None
        if found != size or hashlib.sha256(content).hexdigest() != sha256:
            raise SpoolError(path, f"is damaged; {remedy}")
        return content

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):
                (self.folder / name).unlink(missing_ok=True)

    def room(self, size: int) -> None:
        """Errors: `SpoolError` if the disk has no room for `size` more bytes."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise SpoolError(self.folder, f"cannot be used ({error.strerror}); give another folder") from None
        if free < size + SPARE_BYTES:
            free_mb, size_mb = f"{free / 1e6:.0f} MB", f"{size / 1e6:.0f} MB"
            raise SpoolError(self.folder, f"the disk has {free_mb} left, one query takes {size_mb}; free space")

    def strays(self, known: set[str], seconds: float) -> list[str]:
        """Files of a spool that no ledger names, last written `seconds` ago or more: what a crash left behind."""
        before = time.time() - seconds
        found = []
        for path in self.folder.glob("*/*"):
            name = path.relative_to(self.folder).as_posix()
            with suppress(OSError):
                if name in known or not _NAMES.fullmatch(name):
                    continue
                if path.is_file() and path.stat().st_mtime <= before:
                    found.append(name)
        return found
