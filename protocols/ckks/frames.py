"""Messages of ours: a head that names kind and program, then objects in a known order, each after its length.

    BFHE | format | kind | SHA-256 of the program | (length | bytes of SEAL) for each item

Which items there are, and to what each inflates, both sides know (facts.py). So a length that cannot be is refused
before anything is kept, and nothing is read by SEAL that check_sealed has not walked. Nothing is unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from .facts import Item
from .sealed import SealedError, check_sealed

Kind = Literal["keys", "request", "reply"]
KINDS: dict[Kind, int] = {"keys": 1, "request": 2, "reply": 3}
FORMAT = 2
HEAD = struct.Struct("<4sBB32s")
LENGTH = struct.Struct("<I")
_MAGIC = b"BFHE"


class FrameError(SealedError):
    """Bytes that are not a message of this kind, for this program."""


class OtherProgram(FrameError):
    """A message for another program than this one."""


def head(kind: Kind, program: str) -> bytes:
    return HEAD.pack(_MAGIC, FORMAT, KINDS[kind], bytes.fromhex(program))


def most(items: Iterable[Item]) -> int:
    """The longest that a message of these items can be."""
    return HEAD.size + sum(LENGTH.size + item.most for item in items)


def pack(kind: Kind, program: str, sealed: Iterable[bytes]) -> Iterator[bytes]:
    """The message's pieces, one after the other: keys need not be in memory together."""
    yield head(kind, program)
    for data in sealed:
        yield LENGTH.pack(len(data))
        yield data


class FrameReader:
    """Takes a message apart as it comes. `feed` gives the items that are whole now; `end` says if any are missing.

    It holds one item at most. Errors of both: FrameError, SealedError.
    """

    def __init__(self, kind: Kind, program: str, items: Sequence[Item]) -> None:
        self._head, self._items = head(kind, program), items
        self._kind: Kind = kind
        self._held, self._place, self._greeted = bytearray(), 0, False

    def feed(self, chunk: bytes) -> list[tuple[Item, bytes]]:
        received = []
        self._held += chunk
        if not self._greeted:
            if len(self._held) < HEAD.size:
                return []
            self._greet(bytes(self._held[: HEAD.size]))
            del self._held[: HEAD.size]
        while self._place < len(self._items) and len(self._held) >= LENGTH.size:
            item = self._items[self._place]
            (length,) = LENGTH.unpack_from(self._held)
            if length > item.most:
                raise FrameError(f"{item.what}: {length} bytes are more than one of these parameters can have")
            if len(self._held) < LENGTH.size + length:
                return received
            data = bytes(self._held[LENGTH.size : LENGTH.size + length])
            del self._held[: LENGTH.size + length]
            check_sealed(data, item.inner, item.what)
            received.append((item, data))
            self._place += 1
        if self._place == len(self._items) and self._held:
            raise FrameError(f"the {self._kind} go on beyond their end")
        return received

    def end(self) -> None:
        if self._place < len(self._items):
            missing = self._items[self._place].what if self._greeted else "head"
            raise FrameError(f"the {self._kind} end before their {missing}; send them whole")

    def _greet(self, data: bytes) -> None:
        magic, number, kind, program = HEAD.unpack(data)
        wanted = HEAD.unpack(self._head)
        if magic != _MAGIC or number != FORMAT or kind != wanted[2]:
            raise FrameError(
                f"this is no message of kind {self._kind}, format {FORMAT}; do both sides run one version?"
            )
        if program != wanted[3]:
            raise OtherProgram("the message is for another program; get the client's folder of this compilation")
        self._greeted = True


def unpack(kind: Kind, program: str, items: Sequence[Item], data: bytes) -> dict[int, bytes]:
    """A whole message's objects by number. Errors: FrameError, SealedError."""
    reader = FrameReader(kind, program, items)
    received = reader.feed(data)
    reader.end()
    return {item.number: content for item, content in received}
