"""The keys of a spool's correlations, in one file: 32 bytes for each row of the ledger, zero where there is none.

They are in no database, since one leaves copies: a journal, pages that were moved, blocks that were truncated. Here a
key is written once and overwritten in its place, and both are on the disk when the call returns.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from ....files import sync
from ....protocols.seeds import SEED_BYTES

_NONE = bytes(SEED_BYTES)


class Keys:
    """The file at `path`, made with the first key. `slot`: a row's number, from 1. Errors of all methods: OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, slot: int, key: bytes) -> None:
        assert len(key) == SEED_BYTES
        made = not self.path.exists()
        with self._open(os.O_CREAT | os.O_RDWR) as file:
            os.pwrite(file, key, _at(slot))
            os.fsync(file)
        if made:
            sync(self.path.parent)

    def read(self, slot: int) -> bytes | None:
        """None if there is none (any more)."""
        if not self.path.exists():
            return None
        with self._open(os.O_RDONLY) as file:
            key = os.pread(file, SEED_BYTES, _at(slot))
        return key if len(key) == SEED_BYTES and key != _NONE else None

    def wipe(self, slots: Collection[int]) -> None:
        if not slots or not self.path.exists():
            return
        with self._open(os.O_RDWR) as file:
            for slot in slots:
                os.pwrite(file, _NONE, _at(slot))
            os.fsync(file)

    def filled(self) -> set[int]:
        """The slots that hold a key."""
        content = self.path.read_bytes() if self.path.exists() else b""
        starts = range(0, len(content), SEED_BYTES)
        return {1 + at // SEED_BYTES for at in starts if content[at : at + SEED_BYTES].strip(b"\0")}

    @contextmanager
    def _open(self, flags: int) -> Iterator[int]:
        file = os.open(self.path, flags, 0o600)
        try:
            yield file
        finally:
            os.close(file)


def _at(slot: int) -> int:
    return SEED_BYTES * (slot - 1)
