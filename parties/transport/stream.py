"""A channel over a byte stream: one thread, a socket that never blocks, both directions moving at once.

PlainWire       TCP, without ever blocking; tls.py has TLS over it
Readiness       waits until a socket is ready: spins for a moment, then blocks
StreamChannel   the channel over a wire
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

from ...cores import cores
from ...protocols.channel import Buffer, Meter
from ...protocols.errors import PeerError, PeerGone, PeerProtocolError, PeerTimeout
from .frames import (
    HEADER_BYTES,
    MESSAGE,
    MESSAGE_LIMIT,
    READ_ITS_MESSAGE,
    TENSOR,
    Incoming,
    as_bytes,
    explain,
    pack_header,
    pack_message,
    peer_error,
    unpack_message,
)

try:
    from resource import RUSAGE_THREAD, getrusage
except ImportError:  # not Linux: nothing tells whether others want the core
    CAN_SPIN = False
else:
    CAN_SPIN = cores() > 1

SOCKET_BUFFER = 4 * 1024 * 1024  # the kernel gives what its own limits allow
# Between queries a session may be silent for long; then the kernel asks whether the peer's machine is still there.
KEEPALIVE = {
    name: value
    for name, value in {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}.items()
    if hasattr(socket, name)
}


def tune(sock: socket.socket) -> None:
    """Send small messages at once, give large ones a buffer, never block, and notice a machine that vanishes."""
    sock.setblocking(False)
    with contextlib.suppress(OSError):  # absent on Unix sockets
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER)


class PlainWire:
    """The bytes of a channel over a socket as they are. No call blocks; all of them may raise OSError.

    moved   bytes that the socket has taken and given so far: a change is a sign of life
    """

    def __init__(self, sock: socket.socket) -> None:
        tune(sock)
        self.sock = sock
        self.moved = 0

    def fileno(self) -> int:
        return self.sock.fileno()

    def write(self, data: memoryview) -> int:
        """Take some bytes of `data`, return how many; 0 when the peer is not keeping up."""
        try:
            count = self.sock.send(data)
        except BlockingIOError:
            return 0
        self.moved += count
        return count

    def flush(self) -> bool:
        """Push out what was taken. True when nothing is left."""
        return True

    def read_into(self, view: memoryview) -> int:
        """Bytes put into `view`; 0 at the end of the stream, -1 when there is nothing yet."""
        try:
            count = self.sock.recv_into(view)
        except BlockingIOError:
            return -1
        self.moved += count
        return count

    def consumed(self) -> int:
        """`moved`, less what was read ahead of the frames already delivered."""
        return self.moved

    def interrupt(self) -> None:
        """End both directions, from any thread; the socket stays open until `close`."""
        self.sock.shutdown(socket.SHUT_RDWR)

    def close(self, linger: float) -> None:
        """Say goodbye and close; stay up to `linger` seconds until the peer has read everything."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + linger
            while (left := deadline - time.monotonic()) > 0:
                self.sock.settimeout(left)
                if not self.sock.recv(65536):
                    break
        self.sock.close()


SPIN_SECONDS = 0.001  # at most, for one frame
SPIN_BYTES = 16384  # the largest frame to spin for: its sender does not need this core, too
BLOCK_SECONDS = 0.05  # how long waits block at once after others took the core


class Readiness:
    """Of one socket, by its file descriptor. Used by one thread at a time.

    To block and be woken takes up to 0.1 ms, and a token of a language model waits a hundred times. So whoever awaits
    a small frame first polls for it up to a millisecond, and yields the core between two polls. A wait blocks at once
    if the peer's last small frame came late, as over a network, and for a while after others took the core: on a
    machine with more runnable processes than cores, spinning takes time from the peer's own work.
    """

    def __init__(self, fileno: int) -> None:
        self._fileno, self._mask = fileno, select.POLLIN
        self._poll = select.poll()
        self._poll.register(fileno, self._mask)
        self._prompt = CAN_SPIN  # whether the last small frame came within SPIN_SECONDS
        self._block_until = 0.0

    def wait(self, reading: bool, writing: bool, deadline: float, spin: bool) -> bool:
        """Wait until the socket can be read or written. False if `deadline` (time.monotonic) passed first.

        spin    a frame of at most SPIN_BYTES is awaited, and none of it is here
        """
        mask = (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0)
        if mask != self._mask:
            self._mask = mask
            self._poll.modify(self._fileno, mask)
        start = time.monotonic()
        ready = spin and self._prompt and start > self._block_until and self._spin(start)
        ready = ready or bool(self._poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if spin:
            self._prompt = CAN_SPIN and time.monotonic() - start < SPIN_SECONDS
        return ready

    def _spin(self, start: float) -> bool:
        """Poll until the socket is ready. False if it was not in SPIN_SECONDS."""
        switches, ready, now = getrusage(RUSAGE_THREAD).ru_nivcsw, False, start
        while not ready and now - start < SPIN_SECONDS:
            os.sched_yield()
            ready, now = bool(self._poll.poll(0)), time.monotonic()
        if getrusage(RUSAGE_THREAD).ru_nivcsw > switches:
            self._block_until = now + BLOCK_SECONDS
        return ready


CHUNK = 256 * 1024  # bytes moved in one direction before the other one continues
FIRST_RECORD = 16384  # the header travels in one TLS record with the first bytes of the payload
CLOSE_TIMEOUT = 1.0  # seconds to wait for the peer's reason of a failure, or until it has read ours
SLOWEST = 16384  # bytes a second: a slower frame times out


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
        self._readiness = Readiness(wire.fileno())

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

    def fileno(self) -> int:
        """Of the socket: readable when the peer has sent something, or hung up."""
        return self._wire.fileno()

    def interrupt(self) -> None:
        """From any thread: whoever waits in this channel gets `PeerGone`. Its own thread still has to close it."""
        with contextlib.suppress(OSError):
            self._wire.interrupt()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # A socket closed with unread bytes is reset, and loses our last message: wait until the peer has read it.
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
            # A timeout before the first byte leaves the stream between two frames: the caller may wait again.
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
            # Only for a frame's first byte: a peer that sends byte by byte must not keep this core busy.
            spin = incoming is not None and not (sending or incoming.started) and incoming.limit <= SPIN_BYTES
            start = time.monotonic()
            ready = self._readiness.wait(receiving, sending, deadline, spin)
            self.meter.seconds_waiting += time.monotonic() - start
            if not ready:
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

    def _error_on_close(self, incoming: Incoming | None) -> PeerError | None:
        """The error that the peer reported before it hung up, or None."""
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
