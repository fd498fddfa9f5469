"""What SEAL writes, checked before SEAL reads it: sizes follow from the parameters, and bytes are held to them.

SEAL compresses with zstd, and its loader inflates whatever a stream says. Here a stream is walked block by block (a
block holds 128 KiB at most), so that what it can grow to is known before anything is inflated: RFC 8878, section 3.1.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .parameters import CkksError

HEADER = struct.Struct("<HBBBBHQ")  # magic, size of the header, version, version, compression, reserved, size in all
MAGIC, ZSTD = 0xA15E, 2
FRAME = 0xFD2FB528
BLOCK = 1 << 17
MOST_WINDOW = 23  # log2 of what an inflating side may have to remember
MOST_GROWTH = 4  # zstd splits some blocks, and how much a compressed one holds of its 128 KiB is not written down

_MEMBERS = 32 + 1 + 8 + 8 + 8 + 8 + 8  # parameters' id, NTT form, parts, degree, primes, scale, correction factor
_ARRAY = HEADER.size + 8
_SEED = HEADER.size + 1 + 64


class SealedError(CkksError):
    """Bytes that are not a ciphertext or key of these parameters."""


def ciphertext_bytes(degree: int, primes: int, seeded: bool) -> int:
    """A ciphertext of two parts, inflated. `seeded`: fresh, with a seed in place of the second part."""
    part = 8 * degree * primes
    return _MEMBERS + _ARRAY + (part + _SEED if seeded else 2 * part)


def relinearisation_bytes(degree: int, levels: int) -> int:
    """The seeded key that brings products back to two parts, inflated: a ciphertext of all primes for each but one."""
    return _switching(degree, levels, 1)


def rotation_bytes(degree: int, levels: int) -> int:
    """The seeded key of one rotation, inflated, in SEAL's table of all there could be."""
    return _switching(degree, levels, degree)


def _switching(degree: int, levels: int, table: int) -> int:
    one = HEADER.size + ciphertext_bytes(degree, levels + 2, seeded=True)
    return 32 + 8 + 8 * table + (levels + 1) * one


def most_bytes(inner: int) -> int:
    """Of so many bytes compressed: zstd stores what it cannot compress, three bytes a block more."""
    return HEADER.size + 18 + inner + 3 * (inner // BLOCK + 1)


def check_sealed(data: bytes | memoryview, inner: int, what: str) -> None:
    """Hold bytes to SEAL's form and to what they shall inflate to, without inflating them. Errors: SealedError."""
    if not HEADER.size < len(data) <= most_bytes(inner):
        raise SealedError(f"{what}: {len(data)} bytes cannot be one of these parameters")
    magic, size, _, _, mode, _, total = HEADER.unpack_from(data)
    if (magic, size, mode, total) != (MAGIC, HEADER.size, ZSTD, len(data)):
        raise SealedError(f"{what}: has no header of SEAL's")
    content, at = _frame(data, what)
    if content != inner:
        raise SealedError(f"{what}: holds {content} bytes where these parameters have {inner}")
    grown, last = 0, False
    while not last:
        if at + 3 > len(data) or grown > MOST_GROWTH * inner + BLOCK:
            raise SealedError(f"{what}: is not whole, or grows beyond its size")
        head = int.from_bytes(data[at : at + 3], "little")
        last, kind, length = bool(head & 1), head >> 1 & 3, head >> 3
        if kind == 3 or length > BLOCK:
            raise SealedError(f"{what}: is damaged")
        grown += BLOCK if kind == 2 else length
        at += 3 + (1 if kind == 1 else length)
    if at != len(data):
        raise SealedError(f"{what}: is not whole, or goes on beyond its end")


def _frame(data: bytes | memoryview, what: str) -> tuple[int, int]:
    """The size that a zstd frame declares, and where its first block begins. Errors: SealedError."""
    at = HEADER.size + 4
    if len(data) < at + 10 or int.from_bytes(data[HEADER.size : at], "little") != FRAME:
        raise SealedError(f"{what}: is not compressed as SEAL does it")
    descriptor, at = data[at], at + 1
    if descriptor & 0b11111:  # no checksum, no dictionary
        raise SealedError(f"{what}: is not compressed as SEAL does it")
    if not descriptor & 0b100000:  # the window, where it is not the whole
        if data[at] >> 3 > MOST_WINDOW - 10:
            raise SealedError(f"{what}: asks for too much memory")
        at += 1
    width = 1 << (descriptor >> 6)
    return int.from_bytes(data[at : at + width], "little") + (256 if width == 2 else 0), at + width


# SEAL's objects as bytes. Its Python binding reads and writes files alone, so these lie in memory, or are private.


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
