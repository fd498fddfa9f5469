"""Where a connection waits until its peer has sent a whole TLS ClientHello: so long it costs a socket, not a process.

The lobby peeks at what has arrived and leaves it in the socket, so that the child that takes over reads it again. It is
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

from ..transport.wires import NOT_TLS_ALERT

RECORD_HEADER = 5  # type, version (2 bytes), length (2 bytes): RFC 8446, section 5.1
HANDSHAKE = 0x16
RECORD_LIMIT = 16384


class HelloState(enum.Enum):
    """What a look at the first bytes of a connection shows."""

    silent = "sent nothing"
    partial = "sent a part of a TLS hello"
    ready = "sent a TLS hello"
    stranger = "does not speak TLS"
    gone = "closed the connection"


@dataclass(eq=False)
class Pending:
    """A connection in the lobby. `end`: when it has to be ready, by the clock of `PendingConnections`."""

    sock: socket.socket
    host: str
    port: int
    end: float
    sight: HelloState = field(default=HelloState.silent)

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
            return HelloState.stranger
        if len(seen) < RECORD_HEADER:
            return HelloState.partial
        length = int.from_bytes(seen[3:], "big")
        if not 0 < length <= RECORD_LIMIT:
            return HelloState.stranger
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
        self._visitors: list[Pending] = []

    def __len__(self) -> int:
        return len(self._visitors)

    def enter(self, sock: socket.socket, host: str, port: int) -> tuple[Pending, Pending | None]:
        """(the new visitor, the one that has to leave for it)."""
        pushed_out = self.push_out() if len(self._visitors) >= self._size else None
        visitor = Pending(sock, host, port, self._clock() + self._seconds)
        self._visitors.append(visitor)
        return visitor, pushed_out

    def push_out(self) -> Pending | None:
        """Take out the one that has to leave where room is short; None if nobody is here.

        It is the oldest that is not ready, of the host that holds most: an honest peer is ready after a round trip.
        """
        if not self._visitors:
            return None
        held = Counter(visitor.host for visitor in self._visitors)
        chosen = min(
            self._visitors, key=lambda visitor: (visitor.sight is HelloState.ready, -held[visitor.host], visitor.end)
        )
        self._visitors.remove(chosen)
        return chosen

    def look(self, visitor: Pending) -> HelloState:
        """Look again at one that is here. A stranger and one that is gone leave; the caller closes their socket."""
        visitor.sight = look(visitor.sock)
        if visitor.sight is HelloState.stranger:
            _say_not_tls(visitor.sock)
        if visitor.sight in (HelloState.stranger, HelloState.gone):
            self._visitors.remove(visitor)
        return visitor.sight

    @property
    def partial(self) -> list[Pending]:
        """Those to look at again after a while: to a selector they look readable all the time."""
        return [visitor for visitor in self._visitors if visitor.sight is HelloState.partial]

    @property
    def ready(self) -> int:
        return sum(visitor.sight is HelloState.ready for visitor in self._visitors)

    def next(self, inside: Mapping[str, int]) -> Pending | None:
        """Take the next that is ready: the first of the host that has the fewest connections `inside`."""
        ready = [visitor for visitor in self._visitors if visitor.sight is HelloState.ready]
        if not ready:
            return None
        chosen = min(ready, key=lambda visitor: inside.get(visitor.host, 0))
        self._visitors.remove(chosen)
        return chosen

    def expired(self) -> list[Pending]:
        """Take out those whose time is over. Being ready and waiting for a turn is no fault, but it ends, too."""
        now = self._clock()
        over = [visitor for visitor in self._visitors if visitor.end <= now]
        self._visitors = [visitor for visitor in self._visitors if visitor.end > now]
        return over

    def close(self) -> list[Pending]:
        """Everybody leaves; the caller closes their sockets."""
        everybody, self._visitors = self._visitors, []
        return everybody


def _say_not_tls(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.send(NOT_TLS_ALERT)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1 << 16)  # closed with unread bytes, the socket would be reset and the alert lost
