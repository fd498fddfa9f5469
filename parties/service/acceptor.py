"""The lobby: where a connection waits until its peer has sent a whole TLS ClientHello. So long it costs a socket.

What has arrived is looked at and left in the socket, so that whoever takes over reads it again. The lobby is bounded in
number and in time: a peer that opens connections and says nothing only pushes out its own. It never spins: a process
that can open no more files lets go of somebody who waits, or accepts nobody for a moment if nobody does.

Many addresses may belong to one attacker, so no rule here counts on an honest peer being early. Its only connection is
safe for `GRACE_SECONDS`, and who of the ready goes next is drawn by lot. Networks that have wasted a handshake draw
after those that have not, so an attacker needs a new network each time. IPv6 is counted by /64, which is one customer.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import resource
import secrets
import socket
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..addresses import network_of
from ..transport.tls import NOT_TLS_ALERT
from .admission import ServiceLimits
from .logs import Log
from .metrics import Metrics

TICK = 0.25  # seconds between looks at deadlines
PARTIAL_TICK = 0.05  # between looks at a hello of which a part has come
ACCEPT_AT_ONCE = 16
PAUSE_SECONDS = 0.2  # no accepting for so long when the machine has no file, process or memory to give
OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SPARE_FILES = 16  # for what is open for a moment: a process that starts, a file of keys, certificates read again
LEAST_PENDING = 16
GRACE_SECONDS = 1.0  # for the round trip of a hello, and for a few draws
MOST_WASTEFUL = 1 << 14  # networks that are remembered: 2 MB
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
    """A connection that waits. `safe`, `end`: until when it stays in any case, and at most, by the clock of
    `PendingConnections`."""

    sock: socket.socket
    host: str
    port: int
    safe: float
    end: float
    hello: HelloState = field(default=HelloState.silent)

    def __post_init__(self) -> None:
        self.network = network_of(self.host)

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
    """`size` connections for at most `seconds` each."""

    def __init__(self, size: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._size, self._seconds, self._clock = size, seconds, clock
        self._waiting: list[Pending] = []
        self._wasted: OrderedDict[str, int] = OrderedDict()  # handshakes, by network

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def has_room(self) -> bool:
        """Whether one more may come; another may have to leave for it."""
        return len(self._waiting) < self._size or bool(self._evictable())

    def add(self, sock: socket.socket, host: str, port: int) -> tuple[Pending, Pending | None]:
        """(the new pending, the one that has to leave for it)."""
        evicted = self.evict() if len(self._waiting) >= self._size else None
        now = self._clock()
        pending = Pending(sock, host, port, now + GRACE_SECONDS, now + self._seconds)
        self._waiting.append(pending)
        return pending, evicted

    def evict(self) -> Pending | None:
        """Take out the one that has to leave where room is short; None if nobody is here.

        It is one that is not ready, of a network that holds most, or has wasted most handshakes; of equals by lot.
        """
        candidates = self._evictable() or self._waiting
        if not candidates:
            return None
        by_network = Counter(pending.network for pending in self._waiting)
        chosen = max(
            candidates,
            key=lambda pending: (
                pending.hello is not HelloState.ready,
                by_network[pending.network] * self._weight(pending),
                secrets.SystemRandom().random(),
            ),
        )
        self._waiting.remove(chosen)
        return chosen

    def note(self, network: str, introduced: bool) -> None:
        """A handshake of this network is over, and its peer has shown a certificate, or has not."""
        wasted = self._wasted.pop(network, 0)
        if not introduced:
            self._wasted[network] = wasted + 1
            if len(self._wasted) > MOST_WASTEFUL:
                self._wasted.popitem(last=False)

    def _evictable(self) -> list[Pending]:
        """All but the only connection of a network while it is new."""
        now, by_network = self._clock(), Counter(pending.network for pending in self._waiting)
        return [pending for pending in self._waiting if pending.safe <= now or by_network[pending.network] > 1]

    def _weight(self, pending: Pending) -> int:
        return 1 + self._wasted.get(pending.network, 0)

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
        """Take the next that is ready: one of a network with the fewest connections `inside` and the fewest wasted
        handshakes, by lot: each network has one, however many connections it holds."""
        ready = [pending for pending in self._waiting if pending.hello is HelloState.ready]
        if not ready:
            return None
        weights = {id(one): self._weight(one) * (1 + inside.get(one.network, 0)) for one in ready}
        least = min(weights.values())
        drawing = [pending for pending in ready if weights[id(pending)] == least]
        by_network = Counter(pending.network for pending in drawing)
        (chosen,) = secrets.SystemRandom().choices(drawing, [1 / by_network[pending.network] for pending in drawing])
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


class Acceptor:
    """`listener` is bound and listens.

    watch, forget   call a function whenever something can be read; never again
    reserved        files that connections that wait no longer may need

    Its user calls `turn` every `tick` seconds or sooner.
    """

    def __init__(
        self,
        listener: socket.socket,
        limits: ServiceLimits,
        reserved: int,
        log: Log,
        metrics: Metrics,
        watch: Callable[[Any, Callable[[], None]], object],
        forget: Callable[[Any], object],
    ) -> None:
        self._listener, self._limits, self._log, self._metrics = listener, limits, log, metrics
        self._watch, self._forget = watch, forget
        size = max(LEAST_PENDING, min(limits.pending, _files_left() - reserved - SPARE_FILES))
        self.pending = PendingConnections(size, limits.pending_seconds)
        self._resume_at: float | None = None
        self._stopped = self._listening = False

    @property
    def tick(self) -> float:
        return PARTIAL_TICK if self.pending.partial else TICK

    def start(self) -> None:
        self._listener.setblocking(False)
        self._listen(True)

    def turn(self) -> None:
        """What is due by the clock."""
        for peer in self.pending.partial:
            self._look(peer)
        for peer in self.pending.expired():
            self.drop(peer, f"its {self._limits.pending_seconds:g} seconds are over")
        if self._resume_at is not None and time.monotonic() >= self._resume_at:
            self._resume_at = None
        self._listen(self._resume_at is None and not self._stopped and self.pending.has_room)

    def next(self, inside: Mapping[str, int]) -> Pending | None:
        """As `PendingConnections.next`; nobody while the machine has no room."""
        return self.pending.next(inside) if self._resume_at is None else None

    def drop(self, peer: Pending, why: str) -> None:
        """Hang up on one that waits no longer."""
        if peer.hello is HelloState.silent:
            self._forget(peer.sock)
        peer.sock.close()
        self._metrics.add("connections", label="dropped")
        self._log.warning("dropped", address=peer.address, what=f"{peer.hello.value}; {why}")

    def pause(self, error: OSError) -> None:
        """The machine has no file, process or memory left: take nobody for a moment, rather than spin."""
        self._listen(False)
        self._resume_at = time.monotonic() + PAUSE_SECONDS
        self._metrics.add("connections", label="no_room")
        self._log.error("no-room", what=f"nobody is let in for {PAUSE_SECONDS:g} s: {error.strerror}")

    def stop(self) -> None:
        """Accept nobody any more, and hang up on all that wait. Safe to call twice."""
        self._listen(False)
        self._stopped = True
        self._listener.close()
        for peer in self.pending.close():
            self.drop(peer, "the service stops")

    def let_go(self) -> None:
        """In a child of the service: close what is the service's."""
        self._listener.close()
        for peer in self.pending.close():
            peer.sock.close()

    def _listen(self, wanted: bool) -> None:
        """While nobody is accepted, those who come wait in the system's queue."""
        if wanted != self._listening:
            self._listening = wanted
            if wanted:
                self._watch(self._listener, self._accept)
            else:
                self._forget(self._listener)

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            if not self.pending.has_room:
                self._listen(False)
                return
            try:
                sock, (host, port, *_) = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF:
                    if (peer := self.pending.evict()) is None:
                        self.pause(error)
                    else:
                        self.drop(peer, f"others wait: {error.strerror}")
                    return
                continue  # that one hung up before it was accepted
            sock.setblocking(False)
            peer, evicted = self.pending.add(sock, host, port)
            if evicted:
                self.drop(evicted, "others wait")
            self._watch(sock, lambda peer=peer: self._look(peer))
            self._look(peer)

    def _look(self, peer: Pending) -> None:
        before = peer.hello
        hello = self.pending.look(peer)
        if before is HelloState.silent and hello is not HelloState.silent:
            self._forget(peer.sock)
        if hello is HelloState.not_tls:
            self._metrics.add("connections", label="not_tls")
            self._log.warning("refused", address=peer.address, kind="NotTls", what=hello.value)
            peer.sock.close()
        elif hello is HelloState.gone:
            self._metrics.add("connections", label="gone")
            peer.sock.close()


def _say_not_tls(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.send(NOT_TLS_ALERT)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(1 << 16)  # closed with unread bytes, the socket would be reset and the alert lost


def _files_left() -> int:
    """How many more files this process may open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return 1 << 20
    try:
        return most - len(os.listdir("/proc/self/fd"))
    except OSError:  # no Linux
        return most - 2 * SPARE_FILES
