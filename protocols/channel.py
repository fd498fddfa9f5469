"""What a protocol needs of a connection: frames of known sizes to and from one peer, metered in one place.

Implementations live in `parties/` (memory for tests, TLS 1.3 for everything else). A protocol always knows
how many bytes it expects, so a frame of any other size is an error and never an allocation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

Buffer = bytes | bytearray | memoryview


@dataclass
class Meter:
    """Traffic of one channel. Payload only: the framing and TLS bytes around it are `overhead`."""

    sent: int = 0
    received: int = 0
    messages_sent: int = 0
    messages_received: int = 0
    overhead: int = 0
    seconds_waiting: float = 0.0

    def snapshot(self) -> Meter:
        return Meter(**vars(self))

    def since(self, earlier: Meter) -> Meter:
        return Meter(**{k: v - getattr(earlier, k) for k, v in vars(self).items()})


class Frames(Protocol):
    """What rounds need of a connection: frames of tensors alone."""

    def send(self, data: Buffer) -> None:
        """Send one frame."""
        ...

    def recv(self, size: int) -> bytearray:
        """Receive one frame that must have exactly `size` bytes."""
        ...

    def exchange(self, data: Buffer, size: int) -> bytearray:
        """Send one frame and receive one of exactly `size` bytes, both at once (no deadlock at any size)."""
        ...


@runtime_checkable
class Channel(Frames, Protocol):
    """A reliable, ordered, framed connection to one named peer.

    Errors: `PeerGone`, `PeerTimeout`, `PeerProtocolError` (protocols/errors.py), each naming `peer`.
    """

    peer: str

    @property
    def meter(self) -> Meter: ...

    @property
    def timeout(self) -> float:
        """Seconds of silence allowed. May be changed at any time."""
        ...

    @timeout.setter
    def timeout(self, seconds: float) -> None: ...

    def send_message(self, message: dict) -> None:
        """Send one small JSON message (handshakes, goodbyes, errors)."""
        ...

    def recv_message(self, limit: int = 65536) -> dict:
        """Receive one JSON message of at most `limit` bytes."""
        ...

    def interrupt(self) -> None:
        """From another thread: whoever waits here gets `PeerGone` at once, and so does whoever comes later."""
        ...

    def close(self) -> None:
        """Close politely. Safe to call twice."""
        ...
