"""The supervisor's children: what each is doing, what it asks for, and its end."""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ..certificates.identity import Renewable
from ..transport.faults import NEW_CERTIFICATE
from .admission import Admission, Busy, Go, News, Queued
from .child import place
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
from .limits import ServiceLimits
from .logs import Log
from .stats import Stats

Seat = Literal["session", "relay", "visit"]
FAREWELL = 5.0  # seconds to end, for a child that has let go of its line


class ReportHandlers(Protocol):
    """The part of a service that answers reports (supervisor.Service)."""

    @property
    def identity(self) -> Renewable: ...

    def seat(self, role: str) -> Seat: ...

    def reply(self, report: ChildReport, peer: Introduced) -> Mapping[str, Any]: ...


@dataclass(eq=False)
class Child:
    """A connection and its process.

    `peer`: None until the hello is done. `seated`: it may stay; until then it holds a place in the handshake, and is
    ended at `kill_at` (of the monotonic clock).
    """

    pid: int
    line: ChildLine
    host: str
    address: str
    born: float
    kill_at: float
    peer: Introduced | Probing | None = None
    seated: bool = False
    failed: bool = False
    stopped: bool = False
    killed: str = ""

    @property
    def who(self) -> dict[str, Any]:
        """Fields of a log line."""
        found: dict[str, Any] = {"address": self.address, "pid": self.pid}
        if self.peer is not None:
            found["peer"] = self.peer.role
        if isinstance(self.peer, Introduced):
            found["session"] = self.peer.session
        return found


class Children:
    """All of them. Whatever one does, or happens to it, ends with it."""

    def __init__(
        self, service: ReportHandlers, limits: ServiceLimits, log: Log, stats: Stats, selector: selectors.BaseSelector
    ) -> None:
        self._service, self._limits, self._log, self._stats = service, limits, log, stats
        self._selector = selector
        self._admission = Admission(limits)
        self._relays = Admission(limits)  # as many as sessions; they never compute
        self._alive: dict[int, Child] = {}
        self._dying: dict[int, Child] = {}  # their line is closed, their process not yet reaped

    @property
    def any(self) -> bool:
        return bool(self._alive or self._dying)

    def add(self, pid: int, sock: socket.socket, host: str, address: str) -> None:
        now = time.monotonic()
        child = Child(pid, ChildLine(sock), host, address, now, now + self._limits.handshake_seconds)
        self._alive[pid] = child
        self._selector.register(sock, selectors.EVENT_READ, lambda: self._read(child))

    def handshaking(self) -> Counter[str]:
        """How many hold a place in the handshake, by host."""
        return Counter(child.host for child in self._alive.values() if not child.seated)

    def gauges(self) -> dict[str, float]:
        return {
            "handshakes": self.handshaking().total(),
            "sessions": self._admission.sessions,
            "running": self._admission.running,
            "queued": self._admission.queued,
        }

    def keep_order(self, waiting: int) -> None:
        """End those whose time is over. `waiting`: so many would like a place in the handshake."""
        now = time.monotonic()
        for child in [child for child in self._alive.values() if now >= child.kill_at]:
            self._kill(child, "slow", "did not finish in time")
        unseated = [child for child in self._alive.values() if not child.seated]  # the oldest first
        wanted = waiting - (self._limits.handshakes - len(unseated))
        for child in unseated[: max(0, wanted)]:
            if now - child.born > self._limits.pressed_seconds:
                self._kill(child, "slow", "did not finish in time while others waited")
        for pid in self._admission.overdue():
            what = f"its query held a worker for more than {self._limits.query_seconds:g} seconds"
            self._kill(self._alive[pid], "overdue", what)
        for child in list(self._dying.values()):
            if now >= child.kill_at:
                self._signal(child, signal.SIGKILL)
            self._try_reap(child)

    def reap(self) -> None:
        """Collect those that have ended."""
        for child in [*self._alive.values(), *self._dying.values()]:
            self._try_reap(child)

    def ask_to_stop(self) -> None:
        """Those with a running query finish it first."""
        for child in self._alive.values():
            self._signal(child, signal.SIGTERM)

    def show_out(self) -> None:
        """End the sessions of whoever was revoked: at once, or when the query that computes is answered."""
        for child in list(self._alive.values()):
            if isinstance(child.peer, Introduced) and self._service.identity.revoked(child.peer.serial):
                self._stop(child, child.peer)

    def end_all(self) -> None:
        """At once. Returns when they are gone."""
        for child in [*self._alive.values(), *self._dying.values()]:
            self._signal(child, signal.SIGKILL)
        for child in [*self._alive.values(), *self._dying.values()]:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            self._let_go(child)
        self._dying.clear()

    def forget(self) -> None:
        """In a child: let go of the others' lines."""
        for child in self._alive.values():
            child.line.close()

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
            self._kill(child, "bug", f"it is ended for a bug of the supervisor: {place(error)}")
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
            child.peer = report
            self._welcome(child, report)
        elif not isinstance(child.peer, Introduced):
            raise BrokenControl("it has not introduced its peer")
        elif isinstance(report, Want):
            self._answer(child, self._admission.want(child.pid), "query")
        elif isinstance(report, Release):
            self._spread(self._admission.release(child.pid))
            if report.left is not None:
                self._stats.set("correlations_left", report.left)
        elif isinstance(report, Limited):
            self._stats.add("limited")
            self._log.info("limited", **child.who, owner=child.peer.owner, what=report.what)
        elif isinstance(report, Answered):
            self._count(child, report)
        else:
            child.line.tell(dict(self._service.reply(report, child.peer)))

    def _welcome(self, child: Child, peer: Introduced | Probing) -> None:
        """Give it a seat, if there is one for what its peer wants. A visit needs none: it is over in a moment."""
        if isinstance(peer, Introduced) and self._service.identity.revoked(peer.serial):
            self._stop(child, peer)  # while it shook hands
            return
        self._stats.add("connections", label="introduced")
        seat = "probe" if isinstance(peer, Probing) else self._service.seat(peer.role)
        verdict: Go | Busy = Go()
        if seat == "probe":
            probes = sum(isinstance(other.peer, Probing) and other.seated for other in self._alive.values())
            if probes >= self._limits.probes:
                verdict = Busy(5.0, "others measure just now")
        elif seat != "visit":
            verdict = (self._relays if seat == "relay" else self._admission).open(child.pid, peer.owner)
        if isinstance(verdict, Go) and seat != "visit":
            child.seated = True
            child.kill_at = time.monotonic() + self._limits.probe_seconds if seat == "probe" else math.inf
        self._answer(child, verdict, seat)
        if child.seated and isinstance(peer, Introduced):
            self._stats.add("sessions_opened", label=peer.role)
            self._log.info("session-opened", **child.who, owner=peer.owner, program=peer.program)

    def _stop(self, child: Child, peer: Introduced) -> None:
        """It ends by itself, and tells its peer why. Safe to call twice."""
        if child.stopped:
            return
        child.stopped = True
        self._stats.add("errors", label="Revoked")
        event = "session-failed" if child.seated else "refused"
        what = f"refuses this {peer.role}: its certificate was revoked; {NEW_CERTIFICATE}"
        self._log.warning(event, **child.who, kind="Revoked", owner=peer.owner, what=what)
        try:
            child.line.tell({"stop": what})
        except BrokenControl as error:
            self._kill(child, "broken_control", str(error))

    def _answer(self, child: Child, verdict: Go | Queued | Busy, wanted: str) -> None:
        if isinstance(verdict, Go):
            child.line.tell({"go": True})
        elif isinstance(verdict, Queued):
            child.line.tell({"queued": verdict.place})
        else:
            self._stats.add("busy", label=wanted)
            self._log.info("busy", **child.who, seconds=verdict.seconds, what=f"{wanted}: {verdict.why}")
            child.line.tell({"busy": {"seconds": verdict.seconds, "why": verdict.why}})

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
        self._stats.add("queries")
        seconds = {"offline_s": report.offline_s, "online_s": report.online_s}
        seconds = {name: value for name, value in seconds.items() if value is not None}
        for name, value in seconds.items():
            self._stats.observe("seconds", value, name.removesuffix("_s"))
        for direction in ("sent", "received", "offline_bytes"):
            self._stats.add("bytes", getattr(report, direction), direction.removesuffix("_bytes"))
        self._log.info(
            "answered",
            **child.who,
            number=report.number,
            **seconds,
            bytes=int(report.sent + report.received + report.offline_bytes),
        )

    def _failed(self, child: Child, report: Failed) -> None:
        if child.failed:
            raise BrokenControl("it has failed already")
        child.failed = True
        self._stats.add("errors", label=report.kind)
        if child.peer is None:
            self._stats.add("connections", label="refused")
        event = "session-failed" if child.seated else "refused"
        self._log.warning(event, **child.who, kind=report.kind, what=report.what)

    # -- the end of a child

    def _let_go(self, child: Child) -> None:
        """Its line is closed: give back what it held, to the next one. Safe to call twice."""
        if self._alive.pop(child.pid, None) is None:
            return
        self._selector.unregister(child.line.sock)
        child.line.close()
        child.kill_at = time.monotonic() + FAREWELL
        self._dying[child.pid] = child
        if child.seated and isinstance(child.peer, Introduced):
            self._log.info("session-closed", **child.who, seconds=time.monotonic() - child.born)
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
            self._stats.add("children_killed", label=name)
            self._log.error("child-killed", **child.who, kind=name, what="its process was ended by a signal")
        while child.pid in self._alive and self._read(child):
            pass  # what it had said before it ended
        self._let_go(child)
        self._dying.pop(child.pid, None)

    def _kill(self, child: Child, reason: str, what: str) -> None:
        if child.killed:
            return
        child.killed = reason
        self._stats.add("children_killed", label=reason)
        event = "session-failed" if child.seated else "refused"
        self._log.warning(event, **child.who, kind="Killed", what=what)
        self._signal(child, signal.SIGKILL)
        self._let_go(child)

    def _signal(self, child: Child, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, number)
