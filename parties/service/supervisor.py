"""The processes of a service, one for each connection: forked, heard, reaped. PostgreSQL does it so.

The supervisor is a single thread and loads everything once, before the first fork, so that its children share the
weights page by page. What strangers send is read only by children; a child that crashes, hangs, lies or is killed gives
back what it held and touches nobody else. When the supervisor dies, every child's lifeline (control.py) closes.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ...protocols.forks import fork
from ..transport.frames import NEW_CERTIFICATE
from .acceptor import Pending
from .admission import Admission, Busy, Go, News, ServiceLimits, Verdict
from .child import Control, become_child, bounded_memory, error_location
from .control import (
    Answered,
    BrokenControl,
    ChildLine,
    ChildReport,
    Failed,
    Introduced,
    Limited,
    Probing,
    Release,
    Want,
)
from .identity import Identity
from .logs import Log
from .metrics import Metrics

ConnectionKind = Literal["session", "relay", "visit"]
CLOSE_SECONDS = 5.0  # to end, for a child that has let go of its line


@dataclass(eq=False)
class Child:
    """A connection and its process.

    `peer`: None until the hello is done, at `since`. `placed`: it has a place; until then it counts as in the
    handshake. `born`, `since`, `kill_at`: of the monotonic clock.
    """

    pid: int
    line: ChildLine
    network: str
    address: str
    born: float
    since: float
    kill_at: float = math.inf
    peer: Introduced | Probing | None = None
    placed: bool = False
    failed: bool = False
    stopped: bool = False
    killed: str = ""

    @property
    def who(self) -> dict[str, Any]:
        """Fields of a log line."""
        fields: dict[str, Any] = {"address": self.address, "pid": self.pid}
        if self.peer is not None:
            fields["peer"] = self.peer.role
        if isinstance(self.peer, Introduced):
            fields["session"] = self.peer.session
        return fields

    @property
    def ending(self) -> str:
        """The event of its end by an error."""
        return "session-failed" if self.placed else "refused"


class Serving(Protocol):
    """What a service is to its processes (service.py)."""

    limits: ServiceLimits
    identity: Identity
    log: Log
    metrics: Metrics

    def work(self, sock: socket.socket, control: Control) -> None: ...
    def kind(self, role: str) -> ConnectionKind: ...
    def reply(self, report: ChildReport, peer: Introduced, child: int) -> Mapping[str, Any]: ...
    def left_by(self, child: int) -> None: ...
    def handshake_over(self, network: str, introduced: bool) -> None: ...
    def watch(self, source: Any, look: Callable[[], object]) -> None: ...
    def forget(self, source: Any) -> None: ...
    def let_go(self) -> None: ...


class Supervisor:
    """The processes of a service, made before the first fork. Whatever a child does, or happens to it, ends with it.

    files  that connections which wait no longer may need: a line to each child, be it a session's, a relay's, in the
           handshake or a measurement
    """

    def __init__(self, service: Serving) -> None:
        self.service, self.limits, self.log, self.metrics = service, service.limits, service.log, service.metrics
        self.files = 2 * self.limits.sessions + self.limits.handshakes + self.limits.probes
        self._admission = Admission(self.limits)
        self._relays = Admission(self.limits)  # as many as sessions; they never compute
        self._alive: dict[int, Child] = {}
        self._dying: dict[int, Child] = {}  # their line is closed, their process not yet reaped
        gc.collect()
        gc.freeze()  # a collection in a child would write to every page that it shares with the others

    @property
    def any(self) -> bool:
        """Whether there is one to wait for when the service stops."""
        return bool(self._alive or self._dying)

    def entering(self) -> Sequence[Child]:
        """Those between their TLS hello and a place, the oldest first."""
        return [child for child in self._alive.values() if not child.placed]

    def gauges(self) -> Mapping[str, float]:
        return {name: getattr(self._admission, name) for name in ("sessions", "running", "queued")}

    def is_running(self, child: int) -> bool:
        """Whether a query of this process computes."""
        return self._admission.is_running(child)

    def start(self, pending: Pending) -> None:
        """Take over a connection that has sent a TLS hello. Errors: OSError, with nothing done."""
        pid, mine = self.fork(lambda control: self.service.work(pending.sock, control))
        pending.sock.close()
        now = time.monotonic()
        child = Child(pid, ChildLine(mine), pending.network, pending.address, born=now, since=now)
        self._alive[pid] = child
        self.service.watch(mine, lambda: self._read(child))

    def fork(self, work: Callable[[Control], None]) -> tuple[int, socket.socket]:
        """A process that does `work`, and this end of the line to it. Errors: OSError."""
        mine, its = socket.socketpair()
        sys.stderr.flush()
        # A signal between the fork and the child's own handlers would be taken for the supervisor's.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        try:
            pid = fork()
            if pid == 0:
                become_child(its, lambda control: self._be_child(mine, work, control), blocked)
        except OSError:
            mine.close()
            raise
        finally:
            its.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        return pid, mine

    def drop(self, child: Child, why: str) -> None:
        self._kill(child, "slow", why)

    def turn(self) -> None:
        """End those whose time is over."""
        now = time.monotonic()
        for child in [child for child in self._alive.values() if now >= child.kill_at]:
            self._kill(child, "slow", "did not finish in time")
        for pid in self._admission.overdue():
            what = f"its query held a worker for more than {self.limits.query_seconds:g} seconds"
            self._kill(self._alive[pid], "overdue", what)
        for child in list(self._dying.values()):
            if now >= child.kill_at:
                self._signal(child, signal.SIGKILL)
            self._try_reap(child)

    def reap(self) -> None:
        """A process has ended."""
        for child in [*self._alive.values(), *self._dying.values()]:
            self._try_reap(child)

    def ask_to_stop(self) -> None:
        """Running queries may finish."""
        for child in self._alive.values():
            self._signal(child, signal.SIGTERM)

    def revoke(self) -> None:
        """End the sessions of who was revoked: at once, or when the query that computes is answered."""
        for child in list(self._alive.values()):
            if isinstance(child.peer, Introduced) and self.service.identity.revoked(child.peer.serial):
                self._revoke(child, child.peer)

    def end_all(self) -> None:
        """At once; returns when they are gone. Safe to call twice."""
        for child in [*self._alive.values(), *self._dying.values()]:
            self._signal(child, signal.SIGKILL)
        for child in [*self._alive.values(), *self._dying.values()]:
            with suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            self._let_go(child)
        self._dying.clear()

    def _be_child(self, mine: socket.socket, work: Callable[[Control], None], control: Control) -> None:
        """In the child: let go of all that is the supervisor's or another child's, then work."""
        mine.close()
        self.service.let_go()
        for child in self._alive.values():
            child.line.close()
        with bounded_memory(self.limits.memory_gb):
            work(control)

    # -- what a child says

    def _read(self, child: Child) -> bool:
        """Hear what has come. False when nothing more can."""
        try:
            reports = child.line.read()
            for report in reports or ():
                self._hear(child, report)
        except (BrokenControl, ValueError) as error:
            self._kill(child, "broken_control", f"its process broke the rules: {error}")
            return False
        except Exception as error:  # a bug of ours must not end the others
            self._kill(child, "bug", f"it is ended for a bug of the supervisor: {error_location(error)}")
            return False
        if reports is None:
            self._let_go(child)
            self._try_reap(child)
        return bool(reports)

    def _hear(self, child: Child, report: ChildReport) -> None:
        """Errors: `BrokenControl`, ValueError for what this child may not say now."""
        if isinstance(report, Failed):
            self._failed(child, report)
        elif isinstance(report, Introduced | Probing):
            if child.peer is not None:
                raise BrokenControl("it has introduced its peer already")
            child.peer, child.since = report, time.monotonic()
            self.service.handshake_over(child.network, introduced=True)
            self._admit(child, report)
        elif not isinstance(child.peer, Introduced):
            raise BrokenControl("it has not introduced its peer")
        elif isinstance(report, Want):
            self._answer(child, self._admission.want(child.pid), "query")
        elif isinstance(report, Release):
            self._spread(self._admission.release(child.pid))
            if report.left is not None:
                self.metrics.set("correlations_left", report.left)
        elif isinstance(report, Limited):
            self.metrics.add("limited")
            self.log.info("limited", **child.who, owner=child.peer.owner, what=report.what)
        elif isinstance(report, Answered):
            self._count(child, report)
        else:
            child.line.send(dict(self.service.reply(report, child.peer, child.pid)))

    def _admit(self, child: Child, peer: Introduced | Probing) -> None:
        """Give it a place, if there is one for what its peer wants. A visit needs none: it is over in a moment."""
        if isinstance(peer, Introduced) and self.service.identity.revoked(peer.serial):
            self._revoke(child, peer)  # while it shook hands
            return
        self.metrics.add("connections", label="introduced")
        kind = "probe" if isinstance(peer, Probing) else self.service.kind(peer.role)
        verdict: Verdict = Go()
        if kind == "probe":
            probes = sum(isinstance(other.peer, Probing) and other.placed for other in self._alive.values())
            if probes >= self.limits.probes:
                verdict = Busy(5.0, "others measure just now")
        elif kind != "visit":
            verdict = (self._relays if kind == "relay" else self._admission).open(child.pid, peer.owner)
        child.placed = isinstance(verdict, Go) and kind != "visit"
        if child.placed and kind == "probe":
            child.kill_at = time.monotonic() + self.limits.probe_seconds
        self._answer(child, verdict, kind)
        if child.placed and isinstance(peer, Introduced):
            self.metrics.add("sessions_opened", label=peer.role)
            self.log.info("session-opened", **child.who, owner=peer.owner, program=peer.program)

    def _revoke(self, child: Child, peer: Introduced) -> None:
        """It ends by itself, and tells its peer why. Safe to call twice."""
        if child.stopped:
            return
        child.stopped = True
        self.metrics.add("errors", label="Revoked")
        what = f"refuses this {peer.role}: its certificate was revoked; {NEW_CERTIFICATE}"
        self.log.warning(child.ending, **child.who, kind="Revoked", owner=peer.owner, what=what)
        try:
            child.line.send({"stop": what})
        except BrokenControl as error:
            self._kill(child, "broken_control", str(error))

    def _answer(self, child: Child, verdict: Verdict, wanted: str) -> None:
        if isinstance(verdict, Go):
            child.line.send({"go": True})
        elif isinstance(verdict, Busy):
            self.metrics.add("busy", label=wanted)
            self.log.info("busy", **child.who, seconds=verdict.seconds, what=f"{wanted}: {verdict.why}")
            child.line.send({"busy": {"seconds": verdict.seconds, "why": verdict.why}})
        else:
            child.line.send({"queued": verdict.place})

    def _spread(self, news: News) -> None:
        for pid, verdict in news:
            other = self._alive.get(pid)
            if other is None:
                continue
            try:
                self._answer(other, verdict, "query")
            except BrokenControl as error:
                self._kill(other, "broken_control", str(error))

    def _count(self, child: Child, report: Answered) -> None:
        self.metrics.add("audits" if report.audits else "queries")
        seconds = {"offline_s": report.offline_s, "online_s": report.online_s}
        seconds = {name: value for name, value in seconds.items() if value is not None}
        for name, value in seconds.items():
            self.metrics.observe("seconds", value, name.removesuffix("_s"))
        for direction in ("sent", "received", "offline_bytes"):
            self.metrics.add("bytes", getattr(report, direction), direction.removesuffix("_bytes"))
        figures = {**seconds, "bytes": int(report.sent + report.received + report.offline_bytes)}
        if report.audits:
            self.log.info("audited", **child.who, number=report.number, **figures)
        else:
            self.log.info("answered", **child.who, number=report.number, **figures)

    def _failed(self, child: Child, report: Failed) -> None:
        if child.failed:
            raise BrokenControl("it has failed already")
        child.failed = True
        self.metrics.add("errors", label=report.kind)
        if child.peer is None:
            self.metrics.add("connections", label="refused")
        self.log.warning(child.ending, **child.who, kind=report.kind, what=report.what)

    # -- the end of a child

    def _let_go(self, child: Child) -> None:
        """Its line is closed: give back what it held, to the next one. Safe to call twice."""
        if self._alive.pop(child.pid, None) is None:
            return
        self.service.forget(child.line.sock)
        child.line.close()
        if child.peer is None:
            self.service.handshake_over(child.network, introduced=False)
        child.kill_at = time.monotonic() + CLOSE_SECONDS
        self._dying[child.pid] = child
        if child.placed and isinstance(child.peer, Introduced):
            self.log.info("session-closed", **child.who, seconds=time.monotonic() - child.born)
        self.service.left_by(child.pid)
        self._relays.leave(child.pid)
        self._spread(self._admission.leave(child.pid))

    def _try_reap(self, child: Child) -> None:
        try:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = child.pid, 0
        if pid == 0:
            return
        if os.WIFSIGNALED(status) and not child.killed:
            number = os.WTERMSIG(status)
            name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
            self.metrics.add("children_killed", label=name)
            self.log.error("child-killed", **child.who, kind=name, what="its process was ended by a signal")
        while child.pid in self._alive and self._read(child):
            pass  # what it had said before it ended
        self._let_go(child)
        self._dying.pop(child.pid, None)

    def _kill(self, child: Child, reason: str, what: str) -> None:
        if child.killed:
            return
        child.killed = reason
        self.metrics.add("children_killed", label=reason)
        self.log.warning(child.ending, **child.who, kind="Killed", what=what)
        self._signal(child, signal.SIGKILL)
        self._let_go(child)

    def _signal(self, child: Child, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(child.pid, number)
