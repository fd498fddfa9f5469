"""The one process of a service that lives long: it accepts, forks a child for each connection, counts, and reaps.

It is a single thread around a selector and loads everything once, before the first fork, so that its children share
the weights page by page. What strangers send is read by children alone; a child that crashes, hangs, lies or is killed
gives back what it held and touches nobody else. When the supervisor dies, every child's lifeline (control.py) closes.
"""

from __future__ import annotations

import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Protocol

from ..certificates.identity import Renewable, Renewal
from .acceptor import Acceptor
from .child import Control, become_child
from .children import Children, Seat
from .control import ChildReport, Introduced
from .exporter import Exporter
from .limits import ServiceLimits
from .logs import Log
from .pending import Pending
from .stats import Stats

FEED_SECONDS = 1.0


class Service(Protocol):
    """What a supervisor serves."""

    @property
    def identity(self) -> Renewable:
        """In the supervisor: this party's certificate, and who is revoked."""
        ...

    def work(self, sock: socket.socket, control: Control) -> None:
        """In the child: everything from the handshake to the last byte."""
        ...

    def seat(self, role: str) -> Seat:
        """What a connection of `role` is: a session that computes, a relay that lives as long, or a short visit."""
        ...

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]:
        """In the supervisor: the answer to a report that only this service knows. Errors: ValueError ends the child."""
        ...

    def gauges(self) -> Mapping[str, float]:
        """In the supervisor, every second: values of gauges that only this service knows."""
        ...


class Supervisor:
    """`run` serves until a signal stops it, or the end of the pipe `lifeline`. `listener` is bound and listens."""

    def __init__(
        self,
        listener: socket.socket,
        service: Service,
        limits: ServiceLimits,
        log: Log,
        stats: Stats,
        exporter: Exporter | None = None,
        lifeline: int | None = None,
    ) -> None:
        self._lifeline = lifeline
        self._terminal = os.isatty(0)
        self._service, self._limits = service, limits
        self._log, self._stats, self._exporter = log, stats, exporter
        self._selector = selectors.DefaultSelector()
        # A line to each child, be it a session's, a relay's, in the handshake or a measurement.
        lines = 2 * limits.sessions + limits.handshakes + limits.probes
        self._acceptor = Acceptor(listener, limits, lines, log, stats, self._watch, self._selector.unregister)
        self._children = Children(service, limits, log, stats, self._selector)
        self._renewal = Renewal(service.identity, log, self._children.show_out)
        self._wake, self._woken = os.pipe()
        self._signals: Counter[int] = Counter()
        self._fed = 0.0
        self._stop_by: float | None = None

    def run(self, ready: Callable[[], None]) -> None:
        """Serve, until a signal says stop and every child is gone. `ready` is called once signals are heard."""
        self._acceptor.start()
        self._watch(self._wake, self._swallow)
        if self._lifeline is not None:
            self._watch(self._lifeline, self._read_lifeline)
        self._stats.set("started", time.time())
        gc.collect()
        gc.freeze()  # a collection in a child would write to every page that it shares with the others
        with self._handling_signals():
            try:
                ready()
                while self._stop_by is None or self._children.any:
                    self._turn()
            finally:
                self._children.end_all()
                if self._exporter:
                    self._exporter.close()
        self._log.info("stopped")

    def _turn(self) -> None:
        for key, _ in self._selector.select(self._acceptor.tick):
            if self._selector.get_map().get(key.fd) is key:  # not gone by an earlier event of this turn
                key.data()
        self._obey_signals()
        self._renewal.look()
        self._acceptor.turn()
        self._children.keep_order(self._acceptor.ready)
        if self._stop_by is not None and time.monotonic() >= self._stop_by:
            self._children.end_all()
        self._let_in()
        self._feed()

    # -- the door

    def _let_in(self) -> None:
        """Fork children for those that are ready, as far as there is room."""
        while (inside := self._children.handshaking()).total() < self._limits.handshakes:
            visitor = self._acceptor.next(inside)
            if visitor is None:
                return
            try:
                self._fork(visitor)
            except OSError as error:
                self._acceptor.drop(visitor, "this machine has no room for a process")
                self._acceptor.pause(error)

    def _fork(self, visitor: Pending) -> None:
        """Errors: OSError, with nothing done."""
        mine, its = socket.socketpair()
        sys.stderr.flush()
        # A signal between the fork and the child's own handlers would be taken for the supervisor's.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        try:
            pid = os.fork()
            if pid == 0:
                become_child(its, lambda control: self._be_child(mine, visitor, control), blocked)
        except OSError:
            mine.close()
            raise
        finally:
            its.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        visitor.sock.close()
        self._children.add(pid, mine, visitor.host, visitor.address)

    def _be_child(self, mine: socket.socket, visitor: Pending, control: Control) -> None:
        """In the child: let go of all that is the supervisor's or another child's, then work."""
        mine.close()
        self._selector.close()
        self._acceptor.let_go()
        os.close(self._wake)
        os.close(self._woken)
        self._children.forget()
        if self._exporter:
            self._exporter.forget()
        self._service.work(visitor.sock, control)

    # -- signals, metrics

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Signals are counted when they come and obeyed in the loop, which they wake."""

        def count(number: int, frame: FrameType | None) -> None:
            self._signals[number] += 1

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
        before = {number: signal.signal(number, count) for number in numbers}
        for end in (self._wake, self._woken):
            os.set_blocking(end, False)
        wakeup = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _swallow(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)

    def _read_lifeline(self) -> None:
        """When it ends, whoever started us is gone, and with it whoever could want an answer: at once."""
        if self._lifeline is not None and not os.read(self._lifeline, 4096):
            self._selector.unregister(self._lifeline)
            self._signals[signal.SIGTERM] += 2

    def _obey_signals(self) -> None:
        if self._signals.pop(signal.SIGCHLD, 0):
            self._children.reap()
        if self._signals.pop(signal.SIGHUP, 0):
            if self._terminal and not os.isatty(0):
                self._signals[signal.SIGTERM] += 1  # our terminal was closed
            else:
                self._renewal.reload()
        for _ in range(self._signals.pop(signal.SIGTERM, 0) + self._signals.pop(signal.SIGINT, 0)):
            if self._stop_by is None:
                self._stop()
            else:
                self._log.warning("stopping", what="a second signal: at once")
                self._stop_by = time.monotonic()

    def _stop(self) -> None:
        self._stop_by = time.monotonic() + self._limits.grace
        self._stats.set("stopping", 1)
        self._log.info("stopping", what="running queries may finish", seconds=self._limits.grace)
        self._acceptor.stop()
        self._children.ask_to_stop()

    def _feed(self) -> None:
        now = time.monotonic()
        if self._exporter is None or now - self._fed < FEED_SECONDS:
            return
        self._fed = now
        self._stats.set("lobby", len(self._acceptor))
        self._stats.set("certificate_expires", self._service.identity.expires)
        for name, value in {**self._children.gauges(), **self._service.gauges()}.items():
            self._stats.set(name, value)
        self._exporter.feed(self._stats.snapshot())

    def _watch(self, source: Any, ready: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, ready)
