"""A channel over a byte stream: one thread, a socket that never blocks, both directions moving at once."""

from __future__ import annotations

import contextlib
import select
import time

from ...protocols.channel import Buffer, Meter
from ...protocols.errors import PeerError, PeerGone, PeerProtocolError, PeerTimeout
from .faults import explain
from .frames import (
    HEADER_BYTES,
    MESSAGE,
    MESSAGE_LIMIT,
    READ_ITS_MESSAGE,
    TENSOR,
    Incoming,
    as_bytes,
    pack_header,
    pack_message,
    peer_error,
    unpack_message,
)
from .wires import PlainWire

CHUNK = 256 * 1024  # bytes moved one way before the other way gets its turn
FIRST_RECORD = 16384  # the header travels in one TLS record with the first bytes of the payload
CLOSE_TIMEOUT = 1.0  # seconds to wait for the reason of a failure, or to stay until the peer has read ours
SLOWEST = 16384  # bytes a second: a frame that moves more slowly does not count as alive


class StreamChannel:
    """The `Channel` of protocols/channel.py over a wire. Used by one thread at a time.

    `timeout` (seconds, may be changed at any time) bounds silence, not the length of a transfer; but a frame of n bytes
    that has begun must be over in timeout + n / SLOWEST, so that a peer cannot hold us for days a byte at a time.
    After an error in the middle of a frame that direction is out of step and refuses further use.

    Errors: `PeerGone`, `PeerTimeout`, `PeerProtocolError`, `PeerRefused`, each naming `peer`.
    """

    close_timeout = CLOSE_TIMEOUT

    def __init__(self, wire: PlainWire, peer: str, timeout: float = 60) -> None:
        self.peer = peer
        self.timeout = timeout
        self.meter = Meter()
        self._wire = wire
        self._closed = False
        self._read_broken = self._write_broken = False
        self._said_why = False
        self._counted = 0  # wire bytes already in the meter
        self._poll = select.poll()
        self._mask = select.POLLIN
        self._poll.register(wire.fileno(), self._mask)

    def send(self, data: Buffer) -> None:
        self._move(TENSOR, as_bytes(data), None)

    def recv(self, size: int) -> bytearray:
        return self._receive(Incoming.tensor(self.peer, size))

    def exchange(self, data: Buffer, size: int) -> bytearray:
        incoming = Incoming.tensor(self.peer, size)
        self._move(TENSOR, as_bytes(data), incoming)
        assert incoming.payload is not None
        return incoming.payload

    def send_message(self, message: dict) -> None:
        self._said_why |= "error" in message
        self._move(MESSAGE, memoryview(pack_message(message)), None)

    def recv_message(self, limit: int = MESSAGE_LIMIT) -> dict:
        message = unpack_message(self.peer, self._receive(Incoming.message(self.peer, limit)))
        error = peer_error(self.peer, message)
        if error is not None:
            raise error
        return message

    def interrupt(self) -> None:
        """From any thread: whoever waits in this channel gets `PeerGone`. Its own thread still has to close it."""
        with contextlib.suppress(OSError):
            self._wire.interrupt()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # A socket closed with unread bytes is reset, and takes our last message with it: stay until it is read.
        with contextlib.suppress(OSError):
            self._wire.close(self.close_timeout if self._said_why else 0.0)

    def __enter__(self) -> StreamChannel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _receive(self, incoming: Incoming) -> bytearray:
        self._move(0, None, incoming)
        assert incoming.payload is not None
        return incoming.payload

    def _move(self, kind: int, data: memoryview | None, incoming: Incoming | None) -> None:
        """Send a frame, receive a frame, or both at once."""
        self._check_usable(data is not None, incoming is not None)
        out: list[memoryview] = []
        if data is not None:
            split = FIRST_RECORD - HEADER_BYTES
            out.append(memoryview(pack_header(kind, len(data)) + data[:split]))
            if len(data) > split:
                out.append(data[split:])
            self._write_broken = True  # until the whole frame is out
        try:
            self._loop(out, incoming)
        except BaseException:
            # A timeout before the first byte leaves the stream in step, so the caller may wait again.
            self._read_broken |= incoming is not None and not incoming.in_step
            raise
        payload = 0
        if data is not None:
            self._write_broken = False
            payload += len(data)
            self.meter.sent += len(data)
            self.meter.messages_sent += 1
        if incoming is not None and incoming.payload is not None:
            payload += len(incoming.payload)
            self.meter.received += len(incoming.payload)
            self.meter.messages_received += 1
        total = self._wire.consumed()
        self.meter.overhead += total - self._counted - payload
        self._counted = total

    def _loop(self, out: list[memoryview], incoming: Incoming | None) -> None:
        wire, timeout = self._wire, self.timeout
        sending, receiving = bool(out), incoming is not None
        write_error: OSError | None = None
        alive, moved = time.monotonic(), wire.moved
        began, size = (alive if sending else None), sum(len(part) for part in out)
        while sending or receiving:
            write_blocked = read_blocked = True
            if sending:
                try:
                    write_blocked = self._push(out)
                    sending = bool(out) or not wire.flush()
                except OSError as error:
                    # The peer may have told us why before it hung up: read that first.
                    write_error, sending, receiving = error, False, not self._read_broken
                    incoming = incoming or Incoming.message(self.peer)
                    timeout = min(timeout, CLOSE_TIMEOUT)
            if receiving and incoming is not None:
                try:
                    read_blocked = self._pull(incoming)
                except OSError as error:
                    raise explain(self.peer, error) from error
                except PeerError:
                    if write_error is None:
                        raise
                    break
                receiving = len(incoming.view) > 0 or incoming.payload is None
            if not (sending or receiving):
                break
            if (sending and not write_blocked) or (receiving and not read_blocked):
                continue
            if wire.moved != moved:
                alive, moved = time.monotonic(), wire.moved
                began = began or alive
            deadline = alive + timeout
            if began is not None:
                coming = len(incoming.payload) if incoming is not None and incoming.payload is not None else 0
                deadline = min(deadline, began + timeout + (size + coming) / SLOWEST)
            if not self._wait(receiving, sending, deadline):
                if write_error is not None:
                    break
                raise self._silent(sending, receiving, time.monotonic() - alive < timeout)
        if write_error is not None:
            raise self._error_on_close(incoming) or explain(self.peer, write_error) from write_error

    def _push(self, out: list[memoryview]) -> bool:
        """Write up to one chunk. True when the wire takes no more for now."""
        if not out:
            return not self._wire.flush()
        budget = CHUNK
        while out and budget > 0:
            taken = self._wire.write(out[0][:budget])
            if taken == 0:
                return True
            budget -= taken
            if taken == len(out[0]):
                out.pop(0)
            else:
                out[0] = out[0][taken:]
        return False

    def _pull(self, incoming: Incoming) -> bool:
        """Read up to one chunk. True when nothing more is there for now."""
        budget = CHUNK
        while budget > 0:
            count = self._wire.read_into(incoming.view)
            if count < 0:
                return True
            if count == 0:
                raise incoming.ended()
            budget -= count
            if incoming.advance(count):
                return False
        return False

    def _wait(self, reading: bool, writing: bool, deadline: float) -> bool:
        """Sleep until the socket is ready. False when the deadline passed first."""
        mask = (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0)
        if mask != self._mask:
            self._mask = mask
            self._poll.modify(self._wire.fileno(), mask)
        start = time.monotonic()
        # No spinning first: it gains 10 us when a core is idle and loses 50 us when the parties share one.
        ready = self._poll.poll(max(0.0, deadline - start) * 1000)
        self.meter.seconds_waiting += time.monotonic() - start
        return bool(ready)

    def _error_on_close(self, incoming: Incoming | None) -> PeerError | None:
        """The error a peer reported before it hung up, if it did."""
        if incoming is None or incoming.payload is None or len(incoming.view):
            return None
        try:
            return peer_error(self.peer, unpack_message(self.peer, incoming.payload[:MESSAGE_LIMIT]))
        except PeerProtocolError:  # a complete tensor frame is no explanation
            return None

    def _silent(self, sending: bool, receiving: bool, trickled: bool) -> PeerTimeout:
        remedy = "see whether it still runs, or allow a longer timeout"
        if trickled:
            what = f"moved a frame more slowly than {SLOWEST // 1024} KiB a second after {self.timeout:g} seconds"
            return PeerTimeout(self.peer, what, remedy)
        what = "stood still" if sending and receiving else "took nothing" if sending else "sent nothing"
        return PeerTimeout(self.peer, f"{what} for {self.timeout:g} seconds", remedy)

    def _check_usable(self, sending: bool, receiving: bool) -> None:
        if self._closed:
            raise PeerGone(self.peer, "this side has closed the connection", "open a new one")
        if (sending and self._write_broken) or (receiving and self._read_broken):
            remedy = READ_ITS_MESSAGE.format(peer=self.peer)
            raise PeerGone(self.peer, "an earlier error left the connection in the middle of a frame", remedy)
