"""Accepts connections and keeps them in the lobby until their peer has sent a whole TLS hello.

Both kinds of services use it: the supervisor with its selector, the HTTPS service with asyncio's loop. It never spins:
a process that can open no more files lets go of somebody in the lobby, or accepts nobody for a moment if that is empty.
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
BREATH = 0.2  # no accepting for so long when the machine has no file, process or memory to give
OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
SPARE_FILES = 16  # for what is open for a moment: a process that starts, a file of keys, certificates read again
LEAST_LOBBY = 16


class Acceptor:
    """`listener` is bound and listens.

    watch, forget   call a function whenever something can be read; never again
    reserved        files that connections beyond the lobby may need

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
        size = max(LEAST_LOBBY, min(limits.lobby, _files_left() - reserved - SPARE_FILES))
        self._lobby = PendingConnections(size, limits.lobby_seconds)
        self._resume_at: float | None = None
        self._stopped = False

    def __len__(self) -> int:
        return len(self._lobby)

    @property
    def ready(self) -> int:
        return self._lobby.ready

    @property
    def tick(self) -> float:
        return PARTIAL_TICK if self._lobby.partial else TICK

    def start(self) -> None:
        self._listener.setblocking(False)
        self._watch(self._listener, self._accept)

    def turn(self) -> None:
        """What is due by the clock."""
        for visitor in self._lobby.partial:
            self._look(visitor)
        for visitor in self._lobby.expired():
            self.drop(visitor, f"its {self._limits.lobby_seconds:g} seconds are over")
        if self._resume_at is not None and time.monotonic() >= self._resume_at:
            self._resume_at = None
            if not self._stopped:
                self._watch(self._listener, self._accept)

    def next(self, inside: Mapping[str, int]) -> Pending | None:
        """As `PendingConnections.next`; nobody while the machine has no room."""
        return self._lobby.next(inside) if self._resume_at is None else None

    def drop(self, visitor: Pending, why: str) -> None:
        """Hang up on one that has left the lobby."""
        if visitor.sight is HelloState.silent:
            self._forget(visitor.sock)
        visitor.sock.close()
        self._metrics.add("connections", label="dropped")
        self._log.warning("dropped", address=visitor.address, what=f"{visitor.sight.value}; {why}")

    def pause(self, error: OSError) -> None:
        """The machine has no file, process or memory left: take nobody for a moment, rather than spin."""
        if self._resume_at is None and not self._stopped:
            self._forget(self._listener)
        self._resume_at = time.monotonic() + BREATH
        self._metrics.add("connections", label="no_room")
        self._log.error("no-room", what=f"nobody is let in for {BREATH:g} s: {error.strerror}")

    def stop(self) -> None:
        """Accept nobody any more, and hang up on all in the lobby. Safe to call twice."""
        if not self._stopped and self._resume_at is None:
            self._forget(self._listener)
        self._stopped = True
        self._listener.close()
        for visitor in self._lobby.close():
            self.drop(visitor, "the service stops")

    def let_go(self) -> None:
        """In a child of the service: close what is the service's."""
        self._listener.close()
        for visitor in self._lobby.close():
            visitor.sock.close()

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                sock, (host, port, *_) = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF:
                    if (visitor := self._lobby.push_out()) is None:
                        self.pause(error)
                    else:
                        self.drop(visitor, f"others wait: {error.strerror}")
                    return
                continue  # that one hung up before it was accepted
            sock.setblocking(False)
            visitor, pushed_out = self._lobby.enter(sock, host, port)
            if pushed_out:
                self.drop(pushed_out, "others wait")
            self._watch(sock, lambda visitor=visitor: self._look(visitor))
            self._look(visitor)

    def _look(self, visitor: Pending) -> None:
        before = visitor.sight
        sight = self._lobby.look(visitor)
        if before is HelloState.silent and sight is not HelloState.silent:
            self._forget(visitor.sock)
        if sight is HelloState.stranger:
            self._metrics.add("connections", label="not_tls")
            self._log.warning("refused", address=visitor.address, kind="NotTls", what=sight.value)
            visitor.sock.close()
        elif sight is HelloState.gone:
            self._metrics.add("connections", label="gone")
            visitor.sock.close()


def _files_left() -> int:
    """How many more files this process may open."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return 1 << 20
    try:
        return most - len(os.listdir("/proc/self/fd"))
    except OSError:  # no Linux
        return most - 2 * SPARE_FILES
