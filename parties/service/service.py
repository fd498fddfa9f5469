"""From settings to a service that serves; what every service does alike: whom it lets in, signals, its end in order.

One loop, asyncio's, hears sockets and signals. After each of them, and every `tick` seconds, the service takes a turn:
what is due by the clock. A process is forked for each connection that has sent a TLS hello (supervisor.py).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import selectors
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from ...levels import level
from ...protocols.errors import BlindformerError
from ..config import Address, ServiceSection, Settings
from .acceptor import Acceptor, Pending
from .admission import ServiceLimits
from .identity import Identity, Renewal
from .local_options import LocalOptions
from .logs import Log
from .metrics import Exporter, Metrics

FEED_SECONDS = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
SECURITY_BITS = 128  # AES-128 streams for the masks; TLS 1.3 between the parties
BACKLOG = 128
INHERITED = "fd"  # in the place of a host: the port is a file descriptor
COLLUDING = "together can read every text and answer: let organisations run them that do not collude"
TOGETHER = {
    "dealer": f"the server and the dealer {COLLUDING}",
    "helper": f"any two of server, helper and dealer {COLLUDING}",
}
STALE_SECONDS = 60.0  # a folder that was made just now may not have its lock yet


class Service:
    """A service, and what it says of itself when it begins to serve.

    role       whose section of the settings, and whose certificate it has
    programs   hashes, one a length; none where any program will do
    limit      how much one certificate may ask, where that is this service's business
    together   which parties must not collude
    commitments  to masked weights

    Errors: `BlindformerError`: a folder or a certificate that cannot be used.
    """

    role: Literal["server", "dealer", "helper"]
    adversary = "semi-honest parties that do not collude"
    helpers = about = limit = together = ""
    commitments: Sequence[str] = ()
    files = 0
    """Files that connections which wait no longer may need."""
    listener: socket.socket
    log: Log

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        """`scratch`: a folder of this service alone, with a short path."""
        self.settings, self.scratch, self.local = settings, scratch, local
        self.limits = ServiceLimits.of(getattr(settings, self.role))
        self.timeout = settings.session.timeout
        self.identity = Identity(settings.certificates.folder, self.role)
        self.programs: list[str] = []

    # -- what a kind of service says of its connections

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """What has to be there while the service serves."""
        yield

    @property
    def able(self) -> bool:
        """Whether a new session would be served, as far as others are needed for it."""
        return True

    @property
    def connected(self) -> bool:
        """Whether there is a connection to wait for when the service stops."""
        raise NotImplementedError

    def entering(self) -> Sequence[Any]:
        """Connections between their TLS hello and a place, the oldest first; each with its `network`, when it was
        `born`, and `since` when it is no further than it is (of the monotonic clock)."""
        raise NotImplementedError

    def start(self, pending: Pending) -> None:
        """Take over a connection that has sent a TLS hello. Errors: OSError, with nothing done."""
        raise NotImplementedError

    def drop(self, entering: Any, why: str) -> None:
        """End one of `entering`."""
        raise NotImplementedError

    def on_turn(self) -> None:
        """What is due by the clock, every turn."""

    def on_child_exit(self) -> None:
        """A process has ended."""

    def on_renewal(self) -> None:
        """New certificates are in force: end what belongs to whoever was revoked."""

    def ask_to_stop(self) -> None:
        """Running queries may finish; nobody new comes."""

    def end_all(self) -> None:
        """End all connections at once. Safe to call twice."""

    def gauges(self) -> Mapping[str, float]:
        """Values of gauges that only this kind of service knows, every second."""
        return {}

    # -- the loop

    def run(
        self,
        listener: socket.socket,
        log: Log,
        ready: Callable[[], None],
        exporter: Exporter | None = None,
        lifeline: int | None = None,
    ) -> None:
        """Serve on `listener` until a signal stops it, and every connection has ended. `ready` is called when it
        serves. `lifeline`: a pipe whose end stops the service at once."""
        self.listener, self.log, self.metrics, self.exporter = listener, log, Metrics(), exporter
        self._lifeline, self._terminal = lifeline, os.isatty(0)
        self._feed_at, self._stop_by = 0.0, None
        self._selector = selector = selectors.DefaultSelector()
        with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
            runner.run(self._serve(ready))
        log.info("stopped")

    @property
    def address(self) -> Address:
        return Address(*self.listener.getsockname()[:2])

    async def _serve(self, ready: Callable[[], None]) -> None:
        self._loop, self._heard, self._bug = asyncio.get_running_loop(), asyncio.Event(), None
        self._wakes = [key.fd for key in self._selector.get_map().values()]  # where the loop hears of signals
        async with self.opened():
            self._acceptor = Acceptor(
                self.listener, self.limits, self.files, self.log, self.metrics, self.watch, self.forget
            )
            self._renewal = Renewal(self.identity, self.log, self.on_renewal)
            self._acceptor.start()
            for number in SIGNALS:
                self._loop.add_signal_handler(number, self._then_turn(lambda number=number: self._obey(number)))
            if self._lifeline is not None:
                self.watch(self._lifeline, self._read_lifeline)
            self.metrics.set("started", time.time())
            try:
                ready()
                while not (self._stop_by is not None and not self.connected):
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._acceptor.tick):
                            await self._heard.wait()
                    self._heard.clear()
                    if self._bug is not None:
                        raise self._bug
                    self._turn()
            finally:
                for number in SIGNALS:  # what follows may wait, and is not the loop's
                    self._loop.remove_signal_handler(number)
                self.end_all()
                self._acceptor.stop()
                if self.exporter:
                    self.exporter.close()

    def watch(self, source: Any, look: Callable[[], object]) -> None:
        """Call `look` whenever something can be read from `source`, until `forget`."""
        self._loop.add_reader(source, self._then_turn(look))

    def forget(self, source: Any) -> None:
        self._loop.remove_reader(source)

    def _then_turn(self, act: Callable[[], object]) -> Callable[[], None]:
        """What the loop calls. A bug of ours ends the service, as it would outside of a callback."""

        def called() -> None:
            self._heard.set()
            try:
                act()
            except BaseException as error:
                self._bug = error

        return called

    def _turn(self) -> None:
        self._renewal.look()
        self._acceptor.turn()
        self._drop_slow()
        self.on_turn()
        if self._stop_by is not None and time.monotonic() >= self._stop_by:
            self.end_all()
        self.let_in()
        self._feed()

    def let_in(self) -> None:
        """Take over those that are ready, as far as there is room in the handshake."""
        while (inside := Counter(one.network for one in self.entering())).total() < self.limits.handshakes:
            pending = self._acceptor.next(inside)
            if pending is None:
                return
            try:
                self.start(pending)
            except OSError as error:
                self._acceptor.drop(pending, "this machine has no room for a process")
                self._acceptor.pause(error)

    def let_go(self) -> None:
        """In a child: close what is the service's."""
        self._selector.close()
        for file in self._wakes:
            os.close(file)
        self._acceptor.let_go()
        if self.exporter:
            self.exporter.forget()

    def _drop_slow(self) -> None:
        """Drop those in the handshake whose time is over, and sooner while others wait."""
        now, entering = time.monotonic(), self.entering()
        wanted = self._acceptor.pending.ready - (self.limits.handshakes - len(entering))
        for number, one in enumerate(entering):
            if now - one.born > self.limits.handshake_seconds:
                self.drop(one, "did not finish in time")
            elif number < wanted and now - one.since > self.limits.pressed_seconds:
                self.drop(one, "did not finish in time while others waited")

    def handshake_over(self, network: str, introduced: bool) -> None:
        """The peer has shown a certificate, or has not: who may try next depends on it."""
        self._acceptor.pending.note(network, introduced)

    # -- signals, metrics

    def _obey(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self.on_child_exit()
        elif number == signal.SIGHUP and not (self._terminal and not os.isatty(0)):  # else our terminal was closed
            self._renewal.reload()
        elif self._stop_by is None:
            self._stop(self.limits.grace)
        else:
            self.log.warning("stopping", what="a second signal: at once")
            self._stop_by = time.monotonic()

    def _read_lifeline(self) -> None:
        """When it ends, whoever started us is gone, and with it whoever could want an answer: at once."""
        if self._lifeline is not None and not os.read(self._lifeline, 4096):
            self.forget(self._lifeline)
            self._stop(0.0)

    def _stop(self, grace: float) -> None:
        self._stop_by = time.monotonic() + grace
        self.metrics.set("stopping", 1)
        self.log.info("stopping", what="running queries may finish", seconds=grace)
        self._acceptor.stop()
        self.ask_to_stop()

    def _feed(self) -> None:
        now = time.monotonic()
        if self.exporter is None or now < self._feed_at:
            return
        self._feed_at = now + FEED_SECONDS
        gauges = {
            "lobby": len(self._acceptor.pending),
            "handshakes": len(self.entering()),
            "certificate_expires": self.identity.expires,
            **self.gauges(),
        }
        for name, value in gauges.items():
            self.metrics.set(name, value)
        self.exporter.feed(self.metrics.text(), self._stop_by is not None, self.able)


# --- from settings to a service that serves ---


class StartError(BlindformerError):
    """A service cannot start."""


def run(
    kind: type[Service],
    settings: Settings,
    announce: Callable[[Service], None] | None = None,
    lifeline: int | None = None,
    local: LocalOptions | None = None,
) -> None:
    """Serve until a signal stops it, or the end of the pipe `lifeline`; SIGHUP reads the certificates again.

    announce   is told when it serves; without it the log is

    Errors: `StartError`, and those of a service of this kind.
    """
    if lifeline is not None and not stat.S_ISFIFO(os.fstat(lifeline).st_mode):
        raise StartError("the lifeline is no pipe; start the service from a program that holds the pipe's other end")
    mine: ServiceSection = getattr(settings, kind.role)
    log = Log(kind.role, mine.log_format)
    with bind(mine.listen, backlog=BACKLOG) as listener, scratch_folder(f"bf-{kind.role}-") as scratch:
        exporter = None if mine.metrics is None else Exporter(bind(mine.metrics, backlog=16), log)
        service = kind(settings, scratch, local or LocalOptions())
        service.run(listener, log, lambda: (announce or log_ready)(service), exporter, lifeline)


def bind(address: Address, backlog: int) -> socket.socket:
    """A listening socket; of fd:N, one that whoever started this process has opened. Errors: `StartError`."""
    try:
        if address.host == INHERITED:
            return socket.socket(fileno=address.port)
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.create_server(where[:2], family=family, backlog=backlog)
        # For what the gateway accepts. asyncio sets it only where a socket says its protocol: a body would wait 40 ms
        # for the acknowledgement of its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        known = error.errno is not None and not isinstance(error, socket.gaierror)
        why = os.strerror(error.errno or 0) if known else error.strerror
        raise StartError(f"{address}: cannot listen there ({why}); choose another address or port") from None


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A folder of this process alone, with a short path, which is gone afterwards.

    One that was left behind, because its process was killed, is removed by the next: nobody holds its lock any more.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS and left.stat().st_uid == os.getuid():
                with _locked(left):
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix=prefix) as folder, _locked(Path(folder)):
        yield Path(folder)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Errors: OSError if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def log_ready(service: Service) -> None:
    """What a banner says, as an event."""
    limits, exporter = service.limits, service.exporter
    service.log.info(
        "ready",
        address=str(service.address),
        metrics=str(exporter.address) if exporter else "",
        adversary=service.adversary,
        helpers=service.helpers,
        together=service.together,
        security_bits=SECURITY_BITS,
        kernels=level(),
        programs=service.programs,
        what=service.about,
        sessions=limits.sessions,
        workers=limits.workers,
        queue=limits.queue,
        limit=service.limit,
        weights=list(service.commitments),
    )
