"""A channel between two threads of one process: for tests, and for parties that are only simulated."""

from __future__ import annotations

import threading
import time
from collections import deque

from ...protocols.channel import Buffer, Meter
from ...protocols.errors import PeerError, PeerGone, PeerProtocolError, PeerTimeout
from .frames import (
    MESSAGE,
    MESSAGE_LIMIT,
    READ_ITS_MESSAGE,
    SAME_PROGRAM,
    TENSOR,
    as_bytes,
    pack_message,
    peer_error,
    unpack_message,
)


class _Link:
    """One direction: frames on their way, and whether either end has left."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.frames: deque[tuple[int, bytearray]] = deque()
        self.closed = False

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()


class MemoryChannel:
    """One end of a `memory_pair`. `record`, when a list, collects the payload of every frame received here."""

    def __init__(self, peer: str, out: _Link, into: _Link, timeout: float, record: list[bytes] | None) -> None:
        self.peer = peer
        self.timeout = timeout
        self.meter = Meter()
        self.record = record
        self._out, self._in = out, into
        self._closed = False

    def send(self, data: Buffer) -> None:
        self._put(TENSOR, data)

    def recv(self, size: int) -> bytearray:
        if size < 0:
            raise ValueError(f"a frame cannot have {size} bytes")
        kind, payload = self._take()
        if kind == MESSAGE:
            error = peer_error(self.peer, unpack_message(self.peer, payload))
            raise error or PeerProtocolError(
                self.peer, "sent a message where a tensor frame was expected", SAME_PROGRAM
            )
        if len(payload) != size:
            what = f"sent a frame of {len(payload)} bytes where {size} were expected"
            raise PeerProtocolError(self.peer, what, SAME_PROGRAM)
        return self._count(payload)

    def exchange(self, data: Buffer, size: int) -> bytearray:
        self.send(data)
        return self.recv(size)

    def send_message(self, message: dict) -> None:
        self._put(MESSAGE, pack_message(message))

    def recv_message(self, limit: int = MESSAGE_LIMIT) -> dict:
        kind, payload = self._take()
        if kind == TENSOR:
            raise PeerProtocolError(self.peer, "sent a tensor frame where a message was expected", SAME_PROGRAM)
        if len(payload) > limit:
            what = f"sent a message of {len(payload)} bytes where at most {limit} are allowed"
            raise PeerProtocolError(self.peer, what, SAME_PROGRAM)
        message = unpack_message(self.peer, self._count(payload))
        error = peer_error(self.peer, message)
        if error is not None:
            raise error
        return message

    def interrupt(self) -> None:
        self.close()

    def close(self) -> None:
        self._closed = True
        self._out.close()
        self._in.close()

    def _put(self, kind: int, data: Buffer) -> None:
        payload = bytearray(as_bytes(data))  # the sender may reuse its buffer at once
        with self._out.changed:
            if self._out.closed:
                raise self._last_words() or self._gone()
            self._out.frames.append((kind, payload))
            self._out.changed.notify()
        self.meter.sent += len(payload)
        self.meter.messages_sent += 1

    def _take(self) -> tuple[int, bytearray]:
        link, start = self._in, time.monotonic()
        with link.changed:
            # Frames sent before a close are still delivered, as on a socket.
            arrived = link.changed.wait_for(lambda: link.frames or link.closed, self.timeout)
            self.meter.seconds_waiting += time.monotonic() - start
            if link.frames and not self._closed:
                return link.frames.popleft()
        if arrived:
            raise self._gone()
        what = f"sent nothing for {self.timeout:g} seconds"
        raise PeerTimeout(self.peer, what, "see whether it still runs, or allow a longer timeout")

    def _count(self, payload: bytearray) -> bytearray:
        self.meter.received += len(payload)
        self.meter.messages_received += 1
        if self.record is not None:
            self.record.append(bytes(payload))
        return payload

    def _last_words(self) -> PeerError | None:
        """The error the peer reported before it left, if it did."""
        if self._closed:
            return None
        messages = [unpack_message(self.peer, payload) for kind, payload in self._in.frames if kind == MESSAGE]
        return next((error for message in messages if (error := peer_error(self.peer, message))), None)

    def _gone(self) -> PeerGone:
        if self._closed:
            return PeerGone(self.peer, "this side has closed the connection", "open a new one")
        return PeerGone(self.peer, "closed the connection", READ_ITS_MESSAGE.format(peer=self.peer))


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
    to_a, to_b = _Link(), _Link()
    return (
        MemoryChannel(b, to_b, to_a, timeout, record.get(a)),
        MemoryChannel(a, to_a, to_b, timeout, record.get(b)),
    )
