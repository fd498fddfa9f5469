"""A service: from its settings to the loop that lets connections in, and what each of its processes does first.

One loop, asyncio's, hears sockets and signals. After each of them, and every `tick` seconds, the service takes a turn:
what is due by the clock. A process is forked for each connection that has sent a TLS hello (supervisor.py).
"""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...protocols.channel import Channel
from ..config import Address, ServerSection, Settings
from ..launch import LocalOptions
from ..session.messages import LimitReached
from ..transport.handshake import Hello, answer_of, answer_probe, greet, is_probe, knock, meet, my_facts
from ..transport.tls import TlsChannel, welcome
from .acceptor import Acceptor
from .admission import ServiceLimits
from .child import Control, abort_on_error
from .control import ChildReport, Introduced, Limited, PartyWatch
from .identity import Identity, Renewal
from .logs import Log
from .metrics import Exporter, Metrics
from .supervisor import ConnectionKind, Supervisor

if TYPE_CHECKING:  # importing it takes seconds
    from ..session.preprocessing_store import PreprocessingStore
    from .quota import Quota

FEED_SECONDS = 1.0
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
SECURITY_BITS = 128  # AES-128 streams for the masks; TLS 1.3 between the parties
COLLUDING = "together can read every text and answer: let organisations run them that do not collude"
TOGETHER = {
    "dealer": f"the server and the dealer {COLLUDING}",
    "helper": f"any two of server, helper and dealer {COLLUDING}",
    "pair": "there is nobody else; a server that deviates can read texts",
}
DAY = 86400.0  # seconds
FIRST_SECONDS = 10.0  # for the handshake, and of silence before the first message
FIRST_LIMIT = 16384  # bytes of the first message: a hello, or a probe that names programs


class Service:
    """A service, and what it says of itself when it begins to serve. Each protocol's class says what its processes do.

    role       whose section of the settings, and whose certificate it has
    roles      whose certificates are welcome
    hellos     what it says of each program, by hash, one a length; none where any program will do
    limit      how much one certificate may ask, where that is this service's business
    together   which parties must not collude
    commitments  to masked weights
    dealer     watched, of a server whose sessions need one

    Errors: `BlindformerError`: a folder or a certificate that cannot be used.
    """

    role: Literal["server", "dealer", "helper"]
    roles: Collection[str] = ("client",)
    adversary = "semi-honest parties that do not collude"
    helpers = about = limit = together = ""
    commitments: Sequence[str] = ()
    store: PreprocessingStore | None = None
    quota: Quota | None = None
    dealer: PartyWatch | None = None
    listener: socket.socket
    log: Log

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        """`scratch`: a folder of this service alone, with a short path."""
        import torch

        torch.set_num_threads(1)  # a pool of threads does not survive a fork
        self.settings, self.scratch, self.local = settings, scratch, local
        self.limits = ServiceLimits.of(getattr(settings, self.role))
        self.timeout, self.config = settings.session.timeout, settings.shared_hash()
        self.identity = Identity(settings.certificates.folder, self.role)
        self.hellos: dict[str, Hello] = {}

    @property
    def programs(self) -> list[str]:
        return list(self.hellos)

    # -- what a kind of service says, in its one process

    def kind(self, role: str) -> ConnectionKind:
        """What a connection of `role` is: a session that computes, a relay that lives as long, or a short visit."""
        return "session"

    def reply(self, report: ChildReport, peer: Introduced, child: int) -> Mapping[str, Any]:
        """The answer to a report that only this service knows, of the process `child`. Errors: ValueError ends it."""
        raise ValueError("a report that nobody here answers")

    def left_by(self, child: int) -> None:
        """This process is gone, and gives back what it held."""

    def on_turn(self) -> None:
        """What is due by the clock, every turn."""

    def on_renewal(self) -> None:
        """New certificates are in force: end what belongs to whoever was revoked."""
        self.processes.revoke()

    def gauges(self) -> Mapping[str, float]:
        """Values of gauges, every second."""
        return self.processes.gauges()

    @property
    def able(self) -> bool:
        """Whether a new session would be served: without the dealer as long as the store holds correlations."""
        return self.dealer is None or not self.dealer.gone or bool(self.left())

    # -- in the process of a connection

    def work(self, sock: socket.socket, control: Control) -> None:
        """Everything from the handshake to the last byte. A probe (transport/handshake.py) is answered here."""
        import torch

        control.party, control.keepalive, control.left = self.role, self.timeout / 3, self.left
        torch.set_num_threads(self.local.threads)
        accepting = self.identity.accepting
        channel = welcome(sock, accepting, self.roles, timeout=FIRST_SECONDS, handshake_seconds=FIRST_SECONDS)
        with self.aborting(channel):
            first = channel.recv_message(FIRST_LIMIT)
            if is_probe(first):
                control.probing(channel.peer, channel.certificate.fingerprint)
                answer_probe(channel, first, my_facts(self.role, self.config, self.programs))
                channel.close()
                return
        self.serve(channel, first, control)

    def serve(self, channel: TlsChannel, first: dict[str, Any], control: Control) -> None:
        """A session. `first`: the peer's first message, a hello."""
        with self.aborting(channel):
            hello = self.greet(channel, first)
            self.introduce(channel, hello, control)
        party = self.party(channel, hello, control)
        with abort_on_error(self.role, party.abandon):
            party.serve(control.answered, idle=self.limits.idle)
            party.close()

    def greet(self, channel: TlsChannel, first: dict[str, Any]) -> Hello:
        """The peer's hello, which has been answered."""
        return greet(channel, partial(answer_of, self.hellos), self.timeout, first)

    def party(self, channel: TlsChannel, hello: Hello, control: Control) -> Any:
        """This side of the session: it has `serve`, `close` and `abandon`."""
        raise NotImplementedError

    def introduce(self, channel: TlsChannel, hello: Hello, control: Control) -> None:
        shown = channel.certificate
        control.introduce(channel.peer, shown.fingerprint, shown.serial, hello.session, hello.program)

    def dial_dealer(self, theirs: Hello) -> Channel:
        """For the session of a peer's hello. Errors: PeerError."""
        self.check_dealer()
        dealer, mine = self.settings.address("dealer"), answer_of(self.hellos, theirs)
        return self.local.shaped(meet(dealer, self.identity.dialling, "dealer", mine, self.timeout))

    def check_dealer(self) -> None:
        """Errors: PeerError if the dealer that is watched is gone."""
        if self.dealer is not None:
            self.dealer.check()

    def counting(self, channel: TlsChannel, control: Control) -> Callable[[int], None] | None:
        """Counts the texts of a query of this peer, or the tokens that it reveals; None if nobody counts."""
        quota = self.quota
        if quota is None:
            return None

        def count(texts: int) -> None:
            try:
                quota.spend(channel.certificate.name, texts)
            except LimitReached as limit:
                control.send(Limited(what=str(limit)))
                raise

        return count

    def aborting(self, *channels: Channel) -> AbstractContextManager[None]:
        return abort_on_error(self.role, lambda: channels)

    # -- preprocessed correlations, and the dealer

    def open_store(self, mine: ServerSection) -> None:
        from ..session.preprocessing_store import PreprocessingStore

        if mine.store is not None:
            keep, room = mine.store_days * DAY, int(1e9 * mine.store_gb)
            self.store = PreprocessingStore(
                mine.store, room, self.limits.share, keep_seconds=keep, database=mine.database
            )
        if self.store is not None and mine.database is not None:
            self.store.left()  # a store that cannot be reached is said now, where somebody reads it

    def left(self) -> int | None:
        """Preprocessed correlations that are left."""
        return None if self.store is None else self.store.left()

    def watch_dealer(self) -> None:
        """From now on. A launcher of this machine watches over its processes itself."""
        if not self.local.scratch:
            facts = my_facts(self.role, self.config)
            ask = lambda: knock(self.settings.address("dealer"), self.identity.dialling, "dealer", facts)  # noqa: E731
            self.dealer = PartyWatch("dealer", ask)

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
        self.processes = Supervisor(self)
        self._acceptor = Acceptor(
            self.listener, self.limits, self.processes.files, self.log, self.metrics, self.watch, self.forget
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
            while self._stop_by is None or self.processes.any:
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
            self._end_all()
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
        self.processes.turn()
        self.on_turn()
        if self._stop_by is None and self.dealer is not None:
            self.dealer.turn(self.processes.fork, self.log)
        elif self._stop_by is not None and time.monotonic() >= self._stop_by:
            self._end_all()
        self.let_in()
        self._feed()

    def let_in(self) -> None:
        """Take over those that are ready, as far as there is room in the handshake."""
        while (inside := Counter(one.network for one in self.processes.entering())).total() < self.limits.handshakes:
            pending = self._acceptor.next(inside)
            if pending is None:
                return
            try:
                self.processes.start(pending)
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
        if self.dealer is not None:
            self.dealer.let_go()

    def _end_all(self) -> None:
        """End all processes at once."""
        self.processes.end_all()
        if self.dealer is not None:
            self.dealer.end()

    def _drop_slow(self) -> None:
        """Drop those in the handshake whose time is over, and sooner while others wait."""
        now, entering = time.monotonic(), self.processes.entering()
        wanted = self._acceptor.pending.ready - (self.limits.handshakes - len(entering))
        for number, one in enumerate(entering):
            if now - one.born > self.limits.handshake_seconds:
                self.processes.drop(one, "did not finish in time")
            elif number < wanted and now - one.since > self.limits.pressed_seconds:
                self.processes.drop(one, "did not finish in time while others waited")

    def handshake_over(self, network: str, introduced: bool) -> None:
        """The peer has shown a certificate, or has not: who may try next depends on it."""
        self._acceptor.pending.note(network, introduced)

    # -- signals, metrics

    def _obey(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self.processes.reap()
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
        self.processes.ask_to_stop()

    def _feed(self) -> None:
        now = time.monotonic()
        if self.exporter is None or now < self._feed_at:
            return
        self._feed_at = now + FEED_SECONDS
        gauges = {
            "lobby": len(self._acceptor.pending),
            "handshakes": len(self.processes.entering()),
            "certificate_expires": self.identity.expires,
            **self.gauges(),
        }
        for name, value in gauges.items():
            self.metrics.set(name, value)
        self.exporter.feed(self.metrics.text(), self._stop_by is not None, self.able)


def adapters_in_words(adapted: Iterable[str]) -> str:
    """Of what a service serves, the adapters."""
    names = ", ".join(filter(None, adapted))
    return f"; adapters {names}" if names else ""
