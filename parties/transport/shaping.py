"""An imitated network: frames arrive when a network of given round-trip time and bandwidth would deliver them. For
measurements, and for tests of what a network costs.

The sender computes when its frame will have arrived, and sends it at once with that time in front; the receiver waits
until then. So bytes are in flight while both sides work, frames queue behind one another in their direction, and the
two directions do not disturb each other. estimate.py uses `Link` too, on a virtual clock.

Both ends must be wrapped and read one clock: threads or processes of one machine.
"""

from __future__ import annotations

import struct
import threading
import time
from dataclasses import dataclass
from typing import Any

from ...models.program.pricing import Network
from ...protocols.channel import Buffer, Channel, Meter
from ...protocols.errors import PeerGone, PeerTimeout
from .frames import HEADER_BYTES, as_bytes, pack_message
from .tls import RECORD_BYTES

TLS_RECORD_OVERHEAD = 22  # RFC 8446, section 5.2: header 5, content type 1, tag 16
_STAMP = struct.Struct("<d")


def on_the_wire(payload: int) -> int:
    """Bytes that a frame of `payload` bytes has in TCP: with its header, cut into TLS records."""
    framed = HEADER_BYTES + payload
    return framed + -(-framed // RECORD_BYTES) * TLS_RECORD_OVERHEAD


@dataclass
class Link:
    """One direction of a network: frames go one after the other, then travel half a round trip.

    `free`: when the last frame so far has left the sender, in seconds on any clock.
    """

    network: Network
    free: float = 0.0

    def arrival(self, now: float, payload: int) -> float:
        """When a frame handed over at `now` is complete at the other end."""
        self.free = max(now, self.free) + 8 * on_the_wire(payload) / self.network.bandwidth
        return self.free + self.network.rtt / 2


class ShapedChannel:
    """`channel`, as if it ran over `network`. The peer's end must be wrapped too.

    A send never waits, as if the socket's buffer had room for it. `meter` counts what the channel alone would count,
    except `overhead`. Errors: those of the channel; `PeerTimeout` for a frame that takes longer than the timeout.
    """

    def __init__(self, channel: Channel, network: Network) -> None:
        self._channel: Any = channel
        self._link = Link(network)
        self._waited = 0.0
        self._interrupted = threading.Event()
        self._stamps = {"sent": 0, "received": 0, "messages_sent": 0, "messages_received": 0}
        self.peer, self.certificate = channel.peer, getattr(channel, "certificate", None)

    @property
    def meter(self) -> Meter:
        inner = vars(self._channel.meter)
        counted = {name: value - self._stamps.get(name, 0) for name, value in inner.items()}
        return Meter(**{**counted, "seconds_waiting": inner["seconds_waiting"] + self._waited})

    @property
    def timeout(self) -> float:
        return self._channel.timeout

    @timeout.setter
    def timeout(self, seconds: float) -> None:
        self._channel.timeout = seconds

    def send(self, data: Buffer) -> None:
        self._channel.send(self._stamped(data))

    def recv(self, size: int) -> bytearray:
        return self._arrived(self._channel.recv(_STAMP.size + size))

    def exchange(self, data: Buffer, size: int) -> bytearray:
        return self._arrived(self._channel.exchange(self._stamped(data), _STAMP.size + size))

    def send_message(self, message: dict) -> None:
        if "error" not in message:  # an error may come where a tensor is expected, so no stamp may stand before it
            self._channel.send(self._stamp(len(pack_message(message))))
            self._stamps["messages_sent"] += 1
        self._channel.send_message(message)

    def recv_message(self, limit: int = 65536) -> dict:
        stamp = self._channel.recv(_STAMP.size)
        self._stamps["messages_received"] += 1
        message = self._channel.recv_message(limit)
        self._arrived(stamp)
        return message

    def interrupt(self) -> None:
        self._interrupted.set()
        self._channel.interrupt()

    def close(self) -> None:
        self._channel.close()

    def _stamp(self, payload: int) -> bytes:
        self._stamps["sent"] += _STAMP.size
        return _STAMP.pack(self._link.arrival(time.monotonic(), payload))

    def _stamped(self, data: Buffer) -> bytes:
        view = as_bytes(data)
        return b"".join((self._stamp(len(view)), view))

    def _arrived(self, frame: bytearray) -> bytearray:
        """The frame without its stamp, once it would be here."""
        self._stamps["received"] += _STAMP.size
        delay = _STAMP.unpack_from(frame)[0] - time.monotonic()
        if delay > self.timeout:
            what = f"sends a frame that takes {delay:.0f} seconds on this network"
            raise PeerTimeout(self.peer, what, "allow a longer timeout")
        if delay > 0:
            if self._interrupted.wait(delay):
                raise PeerGone(self.peer, "this side has closed the connection", "open a new one")
            self._waited += delay
        del frame[: _STAMP.size]  # moves no bytes: a bytearray remembers where it starts
        return frame
