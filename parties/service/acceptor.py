"""Accepts connections and keeps them waiting until their peer has sent a whole TLS hello.

Both kinds of services use it: the supervisor with its selector, the HTTPS service with asyncio's loop. It never spins:
a process that can open no more files lets go of somebody who waits, or accepts nobody for a moment if nobody does.
"""

from __future__ import annotations

import errno
import os
import resource
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from .limits import ServiceLimits
from .logs import Log
from .metrics import Metrics
from .pending import HelloState, Pending, PendingConnections

TICK = 0.25  # seconds between looks at deadlines
PARTIAL_TICK = 0.05  # between looks at a hello of which a part has come
ACCEPT_AT_ONCE = 16
PAUSE_SECONDS = 0.2  # no accepting for so long when the machine has no file, process or memory to give
OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SPARE_FILES = 16  # for what is open for a moment: a process that starts, a file of keys, certificates read again
LEAST_PENDING = 16


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
        self._stopped = False

    @property
    def tick(self) -> float:
        return PARTIAL_TICK if self.pending.partial else TICK

    def start(self) -> None:
        self._listener.setblocking(False)
        self._watch(self._listener, self._accept)

    def turn(self) -> None:
        """What is due by the clock."""
        for peer in self.pending.partial:
            self._look(peer)
        for peer in self.pending.expired():
            self.drop(peer, f"its {self._limits.pending_seconds:g} seconds are over")
        if self._resume_at is not None and time.monotonic() >= self._resume_at:
            self._resume_at = None
            if not self._stopped:
                self._watch(self._listener, self._accept)

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
        if self._resume_at is None and not self._stopped:
            self._forget(self._listener)
        self._resume_at = time.monotonic() + PAUSE_SECONDS
        self._metrics.add("connections", label="no_room")
        self._log.error("no-room", what=f"nobody is let in for {PAUSE_SECONDS:g} s: {error.strerror}")

    def stop(self) -> None:
        """Accept nobody any more, and hang up on all that wait. Safe to call twice."""
        if not self._stopped and self._resume_at is None:
            self._forget(self._listener)
        self._stopped = True
        self._listener.close()
        for peer in self.pending.close():
            self.drop(peer, "the service stops")

    def let_go(self) -> None:
        """In a child of the service: close what is the service's."""
        self._listener.close()
        for peer in self.pending.close():
            peer.sock.close()

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
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


def _files_left() -> int:
    """How many more files this process may open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return 1 << 20
    try:
        return most - len(os.listdir("/proc/self/fd"))
    except OSError:  # no Linux
        return most - 2 * SPARE_FILES
