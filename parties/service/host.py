"""What every service does alike: whom it lets in, signals, certificates, numbers, its lifeline, and its end in order.

A host has no loop of its own: sessions have a selector's (supervisor.py), encrypted queries have asyncio's
(https/serving.py). The loop watches what the host asks for, and calls `turn` every `tick` seconds or sooner.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

from .acceptor import Acceptor, Pending
from .admission import ServiceLimits
from .exporter import Exporter
from .identity import Identity, Renewal
from .logs import Log
from .metrics import Metrics

FEED_SECONDS = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Connections(Protocol):
    """Those that have sent a TLS hello, as the host sees them."""

    @property
    def any(self) -> bool:
        """Whether there is something to wait for when the service stops."""
        ...

    def entering(self) -> Sequence[Any]:
        """Those between their TLS hello and a place, the oldest first; each with its `host`, and when it was `born` (of
        the monotonic clock)."""
        ...

    def start(self, pending: Pending) -> None:
        """Take over one that has sent a TLS hello. Errors: OSError, with nothing done."""
        ...

    def drop(self, entering: Any, why: str) -> None:
        """End one of `entering`."""
        ...

    def on_turn(self) -> None:
        """What is due by the clock, every turn."""
        ...

    def on_child_exit(self) -> None:
        """A process has ended."""
        ...

    def end_revoked(self) -> None:
        """New certificates are in force: end what belongs to whoever was revoked."""
        ...

    def ask_to_stop(self) -> None:
        """Running queries may finish; nobody new comes."""
        ...

    def end_all(self) -> None:
        """At once. Safe to call twice."""
        ...

    def gauges(self) -> Mapping[str, float]: ...


class Host:
    """`listener` is bound and listens. `lifeline`: a pipe whose end stops the service at once."""

    def __init__(
        self,
        listener: socket.socket,
        limits: ServiceLimits,
        log: Log,
        metrics: Metrics,
        exporter: Exporter | None = None,
        lifeline: int | None = None,
    ) -> None:
        self.listener, self.limits, self.log, self.metrics = listener, limits, log, metrics
        self._exporter, self._lifeline = exporter, lifeline
        self._terminal = os.isatty(0)
        self._wake, self._woken = os.pipe()
        self._signals: Counter[int] = Counter()
        self._feed_at = 0.0
        self._stop_by: float | None = None

    @contextmanager
    def serving(
        self,
        connections: Connections,
        identity: Identity,
        files: int,
        watch: Callable[[Any, Callable[[], None]], object],
        forget: Callable[[Any], object],
    ) -> Iterator[None]:
        """While the context lasts, people are let in and signals are heard; all connections end with it.

        files           that connections that wait no longer may need
        watch, forget   call a function whenever something can be read; never again
        """
        self._connections, self._identity, self._forget = connections, identity, forget
        self._acceptor = Acceptor(self.listener, self.limits, files, self.log, self.metrics, watch, forget)
        self._renewal = Renewal(identity, self.log, connections.end_revoked)
        self._acceptor.start()
        watch(self._wake, self._empty_wake)
        if self._lifeline is not None:
            watch(self._lifeline, self._read_lifeline)
        self.metrics.set("started", time.time())
        try:
            with self._handling_signals():
                yield
        finally:
            connections.end_all()
            self._acceptor.stop()
            if self._exporter:
                self._exporter.close()
        self.log.info("stopped")

    @property
    def tick(self) -> float:
        return self._acceptor.tick

    @property
    def stopping(self) -> bool:
        return self._stop_by is not None

    @property
    def over(self) -> bool:
        """Told to stop, and every connection has ended."""
        return self.stopping and not self._connections.any

    def turn(self) -> None:
        self._obey_signals()
        self._renewal.look()
        self._acceptor.turn()
        self._drop_slow()
        self._connections.on_turn()
        if self._stop_by is not None and time.monotonic() >= self._stop_by:
            self._connections.end_all()
        self.let_in()
        self._feed()

    def let_in(self) -> None:
        """Take over those that are ready, as far as there is room in the handshake."""
        while (inside := Counter(one.host for one in self._connections.entering())).total() < self.limits.handshakes:
            pending = self._acceptor.next(inside)
            if pending is None:
                return
            try:
                self._connections.start(pending)
            except OSError as error:
                self._acceptor.drop(pending, "this machine has no room for a process")
                self._acceptor.pause(error)

    def let_go(self) -> None:
        """In a child: close what is the host's."""
        self._acceptor.let_go()
        os.close(self._wake)
        os.close(self._woken)
        if self._exporter:
            self._exporter.forget()

    def _drop_slow(self) -> None:
        """Drop those in the handshake whose time is over, and sooner while others wait."""
        now, entering = time.monotonic(), self._connections.entering()
        wanted = self._acceptor.pending.ready - (self.limits.handshakes - len(entering))
        for number, one in enumerate(entering):
            if now - one.born > self.limits.handshake_seconds:
                self._connections.drop(one, "did not finish in time")
            elif number < wanted and now - one.born > self.limits.pressed_seconds:
                self._connections.drop(one, "did not finish in time while others waited")

    # -- signals, metrics

    @contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Signals are counted when they come and obeyed in the loop, which they wake."""

        def count(number: int, frame: FrameType | None) -> None:
            self._signals[number] += 1

        before = {number: signal.signal(number, count) for number in SIGNALS}
        for end in (self._wake, self._woken):
            os.set_blocking(end, False)
        wakeup = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _empty_wake(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _read_lifeline(self) -> None:
        """When it ends, whoever started us is gone, and with it whoever could want an answer: at once."""
        if self._lifeline is not None and not os.read(self._lifeline, 4096):
            self._forget(self._lifeline)
            self._signals[signal.SIGTERM] += 2

    def _obey_signals(self) -> None:
        if self._signals.pop(signal.SIGCHLD, 0):
            self._connections.on_child_exit()
        if self._signals.pop(signal.SIGHUP, 0):
            if self._terminal and not os.isatty(0):
                self._signals[signal.SIGTERM] += 1  # our terminal was closed
            else:
                self._renewal.reload()
        for _ in range(self._signals.pop(signal.SIGTERM, 0) + self._signals.pop(signal.SIGINT, 0)):
            if self._stop_by is None:
                self._stop()
            else:
                self.log.warning("stopping", what="a second signal: at once")
                self._stop_by = time.monotonic()

    def _stop(self) -> None:
        self._stop_by = time.monotonic() + self.limits.grace
        self.metrics.set("stopping", 1)
        self.log.info("stopping", what="running queries may finish", seconds=self.limits.grace)
        self._acceptor.stop()
        self._connections.ask_to_stop()

    def _feed(self) -> None:
        now = time.monotonic()
        if self._exporter is None or now < self._feed_at:
            return
        self._feed_at = now + FEED_SECONDS
        gauges = {
            "lobby": len(self._acceptor.pending),
            "handshakes": len(self._connections.entering()),
            "certificate_expires": self._identity.expires,
            **self._connections.gauges(),
        }
        for name, value in gauges.items():
            self.metrics.set(name, value)
        self._exporter.feed(self.metrics.text(), self.stopping)
