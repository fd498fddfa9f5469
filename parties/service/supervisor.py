"""The one process of a service that lives long: it accepts, forks a child for each connection, counts, and reaps.

It is a single thread around a selector and loads everything once, before the first fork, so that its children share
the weights page by page. What strangers send is read by children alone; a child that crashes, hangs, lies or is killed
gives back what it held and touches nobody else. When the supervisor dies, every child's lifeline (control.py) closes.
"""

from __future__ import annotations

import contextlib
import errno
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

from .child import Control, become_child
from .children import Children, Seat
from .control import Introduced, Report
from .exporter import Exporter
from .identity import Certificates, Renewal
from .limits import Limits
from .lobby import Lobby, Sight, Visitor
from .logs import Log
from .stats import Stats

TICK = 0.25  # seconds between looks at deadlines
PARTIAL_TICK = 0.05  # between looks at a hello of which a part has come
FEED_SECONDS = 1.0
ACCEPT_AT_ONCE = 16
BREATH = 0.2  # no accepting for so long when the machine has no file, process or memory to give
OUT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN)


class Service(Protocol):
    """What a supervisor serves."""

    @property
    def identity(self) -> Certificates:
        """In the supervisor: this party's certificate, and who is revoked."""
        ...

    def work(self, sock: socket.socket, control: Control) -> None:
        """In the child: everything from the handshake to the last byte."""
        ...

    def seat(self, role: str) -> Seat:
        """What a connection of `role` is: a session that computes, a relay that lives as long, or a short visit."""
        ...

    def reply(self, report: Report, peer: Introduced) -> Mapping[str, Any]:
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
        limits: Limits,
        log: Log,
        stats: Stats,
        exporter: Exporter | None = None,
        lifeline: int | None = None,
    ) -> None:
        self._lifeline = lifeline
        self._terminal = os.isatty(0)
        self._listener, self._service, self._limits = listener, service, limits
        self._log, self._stats, self._exporter = log, stats, exporter
        self._selector = selectors.DefaultSelector()
        self._lobby = Lobby(limits.lobby, limits.lobby_seconds)
        self._children = Children(service, limits, log, stats, self._selector)
        self._renewal = Renewal(service.identity, log, self._children.show_out)
        self._wake, self._woken = os.pipe()
        self._signals: Counter[int] = Counter()
        self._resume_at: float | None = None
        self._fed = 0.0
        self._stop_by: float | None = None

    def run(self, ready: Callable[[], None]) -> None:
        """Serve, until a signal says stop and every child is gone. `ready` is called once signals are heard."""
        self._listener.setblocking(False)
        self._watch(self._listener, self._accept)
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
        for key, _ in self._selector.select(PARTIAL_TICK if self._lobby.partial else TICK):
            if self._selector.get_map().get(key.fd) is key:  # not gone by an earlier event of this turn
                key.data()
        self._obey_signals()
        self._renewal.look()
        for visitor in self._lobby.partial:
            self._look(visitor)
        for visitor in self._lobby.expired():
            self._drop(visitor, f"its {self._limits.lobby_seconds:g} seconds are over")
        self._children.keep_order(self._lobby.ready)
        if self._stop_by is not None and time.monotonic() >= self._stop_by:
            self._children.end_all()
        self._resume()
        self._let_in()
        self._feed()

    # -- the door

    def _accept(self) -> None:
        for _ in range(ACCEPT_AT_ONCE):
            try:
                sock, (host, port, *_) = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in OUT_OF:
                    self._breathe(error)
                    return
                continue  # that one hung up before it was accepted
            sock.setblocking(False)
            visitor, pushed_out = self._lobby.enter(sock, host, port)
            if pushed_out:
                self._drop(pushed_out, "others wait")
            self._watch(sock, lambda visitor=visitor: self._look(visitor))
            self._look(visitor)

    def _look(self, visitor: Visitor) -> None:
        before = visitor.sight
        sight = self._lobby.look(visitor)
        if before is Sight.silent and sight is not Sight.silent:
            self._selector.unregister(visitor.sock)
        if sight is Sight.stranger:
            self._stats.add("connections", label="not_tls")
            self._log.warning("refused", address=visitor.address, kind="NotTls", what=sight.value)
            visitor.sock.close()
        elif sight is Sight.gone:
            self._stats.add("connections", label="gone")
            visitor.sock.close()

    def _drop(self, visitor: Visitor, why: str) -> None:
        if visitor.sight is Sight.silent:
            self._selector.unregister(visitor.sock)
        visitor.sock.close()
        self._stats.add("connections", label="dropped")
        self._log.warning("dropped", address=visitor.address, what=f"{visitor.sight.value}; {why}")

    def _let_in(self) -> None:
        """Fork children for those that are ready, as far as there is room."""
        while self._resume_at is None:
            inside = self._children.handshaking()
            if inside.total() >= self._limits.handshakes:
                return
            visitor = self._lobby.next(inside)
            if visitor is None:
                return
            try:
                self._fork(visitor)
            except OSError as error:
                self._drop(visitor, "this machine has no room for a process")
                self._breathe(error)

    def _breathe(self, error: OSError) -> None:
        """The machine has no file, process or memory left: take nobody for a moment, rather than spin."""
        if self._resume_at is None and self._stop_by is None:
            self._selector.unregister(self._listener)
        self._resume_at = time.monotonic() + BREATH
        self._stats.add("connections", label="no_room")
        self._log.error("no-room", what=f"nobody is let in for {BREATH:g} s: {error.strerror}")

    def _resume(self) -> None:
        if self._resume_at is not None and time.monotonic() >= self._resume_at:
            self._resume_at = None
            if self._stop_by is None:
                self._watch(self._listener, self._accept)

    def _fork(self, visitor: Visitor) -> None:
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

    def _be_child(self, mine: socket.socket, visitor: Visitor, control: Control) -> None:
        """In the child: let go of all that is the supervisor's or another child's, then work."""
        mine.close()
        self._selector.close()
        self._listener.close()
        os.close(self._wake)
        os.close(self._woken)
        for other in self._lobby.close():
            other.sock.close()
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
        if self._resume_at is None:
            self._selector.unregister(self._listener)
        self._listener.close()
        for visitor in self._lobby.close():
            self._drop(visitor, "the service stops")
        self._children.ask_to_stop()

    def _feed(self) -> None:
        now = time.monotonic()
        if self._exporter is None or now - self._fed < FEED_SECONDS:
            return
        self._fed = now
        self._stats.set("lobby", len(self._lobby))
        self._stats.set("certificate_expires", self._service.identity.expires)
        for name, value in {**self._children.gauges(), **self._service.gauges()}.items():
            self._stats.set(name, value)
        self._exporter.feed(self._stats.snapshot())

    def _watch(self, source: Any, ready: Callable[[], None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, ready)
