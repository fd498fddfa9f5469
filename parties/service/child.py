"""The first and the last thing a child does, and its end of the line to its supervisor.

A child works for one connection and never returns: when its work is done, fails, or the supervisor is gone, its process
ends. SIGTERM asks it to stop: at once between two queries, else when the query is answered.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from ...errors import is_full_gpu
from ...protocols.channel import Channel
from ...protocols.errors import BlindformerError, PeerError, PeerGone, PeerRefused
from ...protocols.forks import has_other_threads
from ..session.messages import SlotsBusy
from ..transport.frames import printable
from ..transport.handshake import abort
from .control import (
    READ_AT_ONCE,
    Answered,
    BrokenControl,
    ChildReport,
    Failed,
    Introduced,
    Lines,
    Probing,
    Release,
    Want,
    pack_report,
    parse,
)

if TYPE_CHECKING:  # importing it takes seconds
    from ..session.online import Timings

LINGER_SECONDS = 0.5  # for what a party has to say of a query when it has given back its worker
THREAD_SECONDS = 1.0  # for a thread that has ended to be gone
ANSWER_SECONDS = 30.0  # the supervisor answers at once; this is for a machine that swaps


class MemoryLimit(BlindformerError):
    """A session needed more memory than it may take."""


class Stopping(BaseException):
    """The service stops, or this session alone, and `why`. Not an Exception, so that nothing on the way takes it for a
    failure of a peer."""

    def __init__(self, why: PeerRefused | None = None) -> None:
        self.why = why
        super().__init__()


class Control:
    """A child's line to its supervisor. Admission (session/messages.py) is `slot`. Used by the main thread."""

    party = "server"
    """How errors name this side."""
    keepalive = 20.0
    """Seconds between signs of life to a peer that waits."""
    left: Callable[[], int | None] = staticmethod(lambda: None)
    """How many preprocessed correlations are left."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._working = False
        self._stop = False
        self._why: PeerRefused | None = None  # the session stops; None: the service does
        self._linger_until = 0.0  # until then (of the monotonic clock) the answer of the last query may be on its way
        self._lines = Lines()
        self._pause: tuple[int, ...] = ()  # a pipe, opened where an error of it ends this process and is reported

    def watch(self) -> None:
        """Start listening to the supervisor. When its end closes, this process ends. Errors: OSError."""
        self._pause = self._pause or os.pipe()
        self._lifeline = threading.Thread(target=self._listen, daemon=True, name="lifeline")
        self._lifeline.start()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """In this block nobody listens to the supervisor: this process has one thread, and may fork. What the
        supervisor says meanwhile is heard afterwards."""
        os.write(self._pause[1], b"\0")
        self._lifeline.join()
        ended = time.monotonic() + THREAD_SECONDS
        while has_other_threads() and time.monotonic() < ended:  # the system may list it for a moment longer
            time.sleep(0.001)
        try:
            yield
        finally:
            self.watch()

    def obey(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGTERM, and of the alarm set for later. Errors: `Stopping`, unless a query is under way."""
        if number == signal.SIGTERM and self._stop:
            return
        self._stop = True
        if not self._working:
            self._end()

    def _end(self) -> None:
        left = self._linger_until - time.monotonic()
        if left <= 0:
            raise Stopping(self._why)
        signal.setitimer(signal.ITIMER_REAL, left)

    def send(self, report: ChildReport) -> None:
        self._sock.sendall(pack_report(report))

    def ask(self, report: ChildReport) -> dict[str, Any]:
        """The supervisor's answer. Errors: `BrokenControl` if there is none."""
        self.send(report)
        try:
            return self._answers.get(timeout=ANSWER_SECONDS)
        except queue.Empty:
            raise BrokenControl(f"the supervisor said nothing for {ANSWER_SECONDS:g} seconds") from None

    def answered(self, number: int, timings: Timings) -> None:
        """A query has its answer, or was an audit."""
        took, online = timings, timings.online
        seconds = {"offline_s": took.offline_s, "online_s": took.online_s, "offline_bytes": float(took.offline_bytes)}
        traffic = {"sent": float(online.sent), "received": float(online.received), "audits": took.audits}
        self.send(Answered(number=number, **seconds, **traffic))

    def introduce(self, role: str, owner: str, serial: str, session: str, program: str) -> None:
        """Ask for a session with the peer that has just said hello. Errors: `SlotsBusy`; `Stopping`."""
        self._check(self.ask(Introduced(role=role, owner=owner, serial=serial, session=session, program=program)))

    def probing(self, role: str, owner: str) -> None:
        """The peer asks how far away we are, and wants no session. Errors: `SlotsBusy`."""
        self._check(self.ask(Probing(role=role, owner=owner)))

    @contextmanager
    def slot(self, number: int, waiting: Callable[[int], None]) -> Iterator[None]:
        """A worker for query `number`. `waiting(place)` is called while others go first, as a sign of life.

        Errors: `SlotsBusy`; `Stopping`; whatever `waiting` raises.
        """
        if self._stop:
            raise Stopping(self._why)
        self._await(number, waiting)
        self._working = True
        try:
            yield
        finally:
            self._linger_until = time.monotonic() + LINGER_SECONDS
            self._working = False
            self.send(Release(number=number, left=self.left()))
        if self._stop:
            self._end()

    def failed(self, error: BaseException) -> None:
        """Why this child ends, for the log. Errors of ours are fit to be read; of a bug, its kind and place are."""
        what = str(error) if isinstance(error, BlindformerError) else error_location(error)
        with contextlib.suppress(OSError):
            self.send(Failed(kind=type(error).__name__[:64], what=printable(what, 400)))

    def _await(self, number: int, waiting: Callable[[int], None]) -> None:
        answer = self.ask(Want(number=number))
        while "queued" in answer:
            waiting(int(answer["queued"]))
            with contextlib.suppress(queue.Empty):
                answer = self._answers.get(timeout=self.keepalive)
        self._check(answer)

    def _check(self, answer: dict[str, Any]) -> None:
        if "busy" in answer:
            raise SlotsBusy(self.party, float(answer["busy"]["seconds"]), str(answer["busy"]["why"]))
        if "go" not in answer:
            raise BrokenControl("the supervisor answered something else")

    def _listen(self) -> None:
        poll, (pause, _) = select.poll(), self._pause
        for source in (self._sock.fileno(), pause):
            poll.register(source, select.POLLIN)
        with contextlib.suppress(OSError, BrokenControl):
            while pause not in dict(poll.poll()):
                if not (data := self._sock.recv(READ_AT_ONCE)):
                    break
                for line in self._lines.feed(data):
                    self._obey_line(parse(line))
            else:
                os.read(pause, 1)
                return
        os._exit(1)

    def _obey_line(self, message: dict[str, Any]) -> None:
        if "stop" in message:
            what, _, remedy = str(message["stop"]).partition("; ")
            self._why = PeerRefused(self.party, what, remedy)
            # To the main thread, which may be waiting for its peer: a signal to the process might come to this one.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
        else:
            self._answers.put(message)


def become_child(
    sock: socket.socket, work: Callable[[Control], None], mask: set[signal.Signals] | set[int]
) -> NoReturn:
    """Work in a process that has just been forked, and end it. `mask`: the signals to block from now on."""
    code = 1
    control = Control(sock)
    try:
        if (wakes := signal.set_wakeup_fd(-1)) >= 0:
            os.close(wakes)  # who writes there has the supervisor obey signals
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, control.obey)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal signals everybody; the supervisor tells us in time
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        control.watch()
        work(control)
        code = 0
    except Stopping:
        code = 0
    except BaseException as error:
        if not (isinstance(error, SlotsBusy) and error.party == control.party):  # which the supervisor said itself
            control.failed(error)
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        os._exit(code)


@contextmanager
def abort_on_error(role: str, channels: Callable[[], Sequence[Channel]]) -> Iterator[None]:
    """Whatever ends the session early: the peers of `channels` are told, as far as it is their business."""
    try:
        yield
    except Stopping as stopping:
        abort(channels(), stopping.why or PeerGone(role, "is stopping", "ask again when it is back"))
        raise
    except SlotsBusy as busy:
        for channel in channels():
            channel.timeout = min(channel.timeout, 1.0)
            if channel.peer != busy.party:
                with contextlib.suppress(PeerError):
                    channel.send_message({"busy": busy.retry_after, "why": busy.why})
            channel.close()
        raise
    except PeerError as error:
        abort(channels(), error)
        raise
    except Exception:
        abort(channels(), PeerGone(role, "has failed", "see its log, then open a new session"))
        raise


@contextmanager
def bounded_memory(gigabytes: float) -> Iterator[None]:
    """From now on this process takes so much more than it has, and no more. Errors: `MemoryLimit`.

    Memory that can be written counts (RLIMIT_DATA), thread stacks of some MB among it. An address space (RLIMIT_AS)
    would have files that are mapped to be read, and what heaps reserve and never use. Only Linux says how much of it a
    process has, and elsewhere nothing is bounded.
    """
    has = getattr(psutil.Process().memory_info(), "data", None)
    if has is not None:
        limit, (_, most) = has + int(1e9 * gigabytes), resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if most < 0 else min(limit, most), most))
    try:
        yield
    except Exception as error:
        if is_full_gpu(error):
            what = "session: its GPU has no memory left; serve fewer sessions at once, or use another device"
            raise MemoryLimit(what) from None
        if not isinstance(error, MemoryError) and "allocate memory" not in str(error):  # torch has no type for it
            raise
        what = f"session: needs more than {gigabytes:g} GB of memory; if that is as it should be, raise memory_gb"
        raise MemoryLimit(what) from None


def error_location(error: BaseException) -> str:
    """Where a bug is, without its message, which may hold anything."""
    frames = traceback.extract_tb(error.__traceback__)
    here = frames[-1] if frames else None
    return f"internal error in {os.path.basename(here.filename)}:{here.lineno} ({here.name})" if here else "internal"
