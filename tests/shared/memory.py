"""Two connected channels within one process, for parties that are simulated there."""

from __future__ import annotations

import json
import socket

from blindformer.parties.transport.frames import Incoming
from blindformer.parties.transport.stream import PlainWire, StreamChannel


class MemoryChannel(StreamChannel):
    """One end of a `memory_pair`. `record`, if a list, collects the payload of every frame received here."""

    close_timeout = 0.0  # a socket pair keeps the last message after the close

    def __init__(self, sock: socket.socket, peer: str, timeout: float, record: list[bytes] | None) -> None:
        super().__init__(PlainWire(sock), peer, timeout)
        self.record = record

    def _move(self, kind: int, data: memoryview | None, incoming: Incoming | None) -> None:
        super()._move(kind, data, incoming)
        if self.record is not None and incoming is not None and incoming.payload is not None:
            self.record.append(bytes(incoming.payload))


def memory_pair(
    a: str = "server",
    b: str = "client",
    timeout: float = 60,
    record: dict[str, list[bytes]] | None = None,
) -> tuple[MemoryChannel, MemoryChannel]:
    """Two connected channels: the first is held by party `a` (its peer is `b`), the second by party `b`.

    `timeout` is in seconds. `record={"server": seen}` appends every payload the server receives to `seen`.
    """
    record = record or {}
    for_a, for_b = socket.socketpair()
    return MemoryChannel(for_a, b, timeout, record.get(a)), MemoryChannel(for_b, a, timeout, record.get(b))


def is_message(payload: bytes) -> bool:
    """Whether it is a message and no tensor, one of 65,536 of which begins as a message does."""
    if payload[:2] != b'{"':
        return False
    try:
        return isinstance(json.loads(payload), dict)
    except ValueError:
        return False
