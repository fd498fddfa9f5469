"""Files that are whole when they have their name, on the disk when they have to be, and never open to more than they
should be."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path, mode: int = 0o600, *, durable: bool = False, new: bool = False) -> Iterator[BinaryIO]:
    """A stream to write to: at the end of the block all of it is at `path`, after an error nothing.

    `durable`: it survives a power cut from then on. `new`: FileExistsError if something is there already.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            if durable:
                os.fsync(stream.fileno())
        (os.link if new else os.replace)(part, path)  # unlike a rename, a link replaces nobody's
        if durable:
            sync(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """One process at a time has the folder. Not its files, which `whole_file` replaces. Errors: OSError if another
    one has it and `wait` is false."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """A folder, and those above it, whose names survive a power cut from then on."""
    if not path.exists():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's content survive a power cut, or a new, renamed or removed name in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
