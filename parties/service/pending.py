"""Where a connection waits until its peer has sent a whole TLS ClientHello: so long it costs a socket, not a process.

What has arrived is looked at and left in the socket, so that the child that takes over reads it again. It is
bounded in number and in time: a peer that opens connections and says nothing only pushes out its own.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..transport.stream import NOT_TLS_ALERT

RECORD_HEADER = 5  # type, version (2 bytes), length (2 bytes): RFC 8446, section 5.1
HANDSHAKE = 0x16
RECORD_LIMIT = 16384


class HelloState(enum.Enum):
    """What a look at the first bytes of a connection shows."""

    silent = "sent nothing"
    partial = "sent a part of a TLS hello"
    ready = "sent a TLS hello"
    not_tls = "does not speak TLS"
    gone = "closed the connection"


@dataclass(eq=False)
class Pending:
    """A connection that waits. `end`: when it has to be ready, by the clock of `PendingConnections`."""

    sock: socket.socket
    host: str
    port: int
    end: float
    hello: HelloState = field(default=HelloState.silent)

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def look(sock: socket.socket) -> HelloState:
    """What the peer has sent so far. Takes nothing out of the socket."""
    try:
        seen = sock.recv(RECORD_HEADER, socket.MSG_PEEK)
        if not seen:
            return HelloState.gone
        if seen[0] != HANDSHAKE:
            return HelloState.not_tls
        if len(seen) < RECORD_HEADER:
            return HelloState.partial
        length = int.from_bytes(seen[3:], "big")
        if not 0 < length <= RECORD_LIMIT:
            return HelloState.not_tls
        seen = sock.recv(RECORD_HEADER + length, socket.MSG_PEEK)
    except BlockingIOError:
        return HelloState.silent
    except OSError:
        return HelloState.gone
    return HelloState.ready if len(seen) == RECORD_HEADER + length else HelloState.partial


class PendingConnections:
    """`size` connections for at most `seconds` each, in the order in which they came."""

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._seconds, self._clock = size, seconds, clock
        self._waiting: list[Pending] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, sock: socket.socket, host: str, port: int) -> tuple[Pending, Pending | None]:
        """(the new pending, the one that has to leave for it)."""
        evicted = self.evict() if len(self._waiting) >= self._size else None
        pending = Pending(sock, host, port, self._clock() + self._seconds)
        self._waiting.append(pending)
        return pending, evicted

    def evict(self) -> Pending | None:
        """Take out the one that has to leave where room is short; None if nobody is here.

        It is the oldest that is not ready, of the host that holds most: an honest peer is ready after a round trip.
        """
        if not self._waiting:
            return None
        held = Counter(pending.host for pending in self._waiting)
        chosen = min(
            self._waiting, key=lambda pending: (pending.hello is HelloState.ready, -held[pending.host], pending.end)
        )
        self._waiting.remove(chosen)
        return chosen

    def look(self, pending: Pending) -> HelloState:
        """Look again at one that waits. It leaves if it is gone or speaks no TLS; the caller closes its socket."""
        pending.hello = look(pending.sock)
        if pending.hello is HelloState.not_tls:
            _say_not_tls(pending.sock)
        if pending.hello in (HelloState.not_tls, HelloState.gone):
            self._waiting.remove(pending)
        return pending.hello

    @property
    def partial(self) -> list[Pending]:
        """Those to look at again after a while: to a selector they look readable all the time."""
        return [pending for pending in self._waiting if pending.hello is HelloState.partial]

    @property
    def ready(self) -> int:
        return sum(pending.hello is HelloState.ready for pending in self._waiting)

    def next(self, inside: Mapping[str, int]) -> Pending | None:
        """Take the next that is ready: the first of the host that has the fewest connections `inside`."""
        ready = [pending for pending in self._waiting if pending.hello is HelloState.ready]
        if not ready:
            return None
        chosen = min(ready, key=lambda pending: inside.get(pending.host, 0))
        self._waiting.remove(chosen)
        return chosen

    def expired(self) -> list[Pending]:
        """Take out those whose time is over. Being ready and waiting for a turn is no fault, but it ends, too."""
        now = self._clock()
        over = [pending for pending in self._waiting if pending.end <= now]
        self._waiting = [pending for pending in self._waiting if pending.end > now]
        return over

    def close(self) -> list[Pending]:
        """Everybody leaves; the caller closes their sockets."""
        everybody, self._waiting = self._waiting, []
        return everybody


def _say_not_tls(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.send(NOT_TLS_ALERT)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1 << 16)  # closed with unread bytes, the socket would be reset and the alert lost
