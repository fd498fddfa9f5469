"""From the lobby into the HTTPS service: TLS handshakes and first requests, bounded in number and time.

A connection costs a socket until its peer has sent a whole TLS hello (service/lobby.py). It then has seconds to finish
the handshake and to send a request's head; few do that at a time, and while others wait the oldest has to leave. With
its request it takes a place, of which each certificate has its share, until the connection ends.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from ...certificates.identity import Identity
from ...transport.faults import explain
from ..acceptor import Acceptor
from ..limits import ServiceLimits
from ..logs import Log
from ..pending import Pending
from ..stats import Stats
from .handshakes import farewell, telling
from .refusals import Refusal, busy

PLACES_AGAIN = 5.0  # seconds until one that found no place may ask again


class Guest:
    """A connection that has left the lobby. `owner`: SHA-256 of the certificate of one that has a place."""

    def __init__(self, visitor: Pending) -> None:
        self.host, self.address, self.born = visitor.host, visitor.address, time.monotonic()
        self.transport: asyncio.Transport | None = None
        self.handshake: asyncio.Task[None] | None = None
        self.owner = ""


class Entrance:
    """`places`: requests at a time, of which one certificate may have `each`. `limits.handshakes`: connections on
    their way to one. `make` gives a connection's protocol, which calls `arrived`, `seat` and `left`."""

    def __init__(
        self, listener: socket.socket, identity: Identity, limits: ServiceLimits, places: int, each: int, log: Log,
        stats: Stats, make: Callable[[Guest], asyncio.Protocol],
    ) -> None:  # fmt: skip
        self._loop = asyncio.get_running_loop()
        self._identity, self._limits, self._log, self._stats = identity, limits, log, stats
        self._places, self._each, self._make = places, each, make
        self._guests: dict[Guest, None] = {}  # in the order in which they came
        files = places + 2 * limits.handshakes  # one in the handshake takes two (_shake_hands)
        self._acceptor = Acceptor(listener, limits, files, log, stats, self._watch, self._loop.remove_reader)

    @property
    def gauges(self) -> dict[str, int]:
        return {"lobby": len(self._acceptor), "handshakes": len(self._entering())}

    async def run(self) -> None:
        """Let in until it is cancelled; then hang up on all that have no place."""
        self._acceptor.start()
        try:
            while True:
                self._acceptor.turn()
                self._press()
                self._let_in()
                await asyncio.sleep(self._acceptor.tick)
        finally:
            self._acceptor.stop()
            for guest in self._entering():
                self._put_out(guest, "the service stops")

    # --- what a connection's protocol says ---------------------------------------------------------------------------
    def arrived(self, guest: Guest, transport: asyncio.Transport) -> None:
        """Its handshake is done."""
        guest.transport = transport
        self._stats.add("connections", label="introduced")

    def seat(self, guest: Guest, owner: str) -> Refusal | None:
        """A place for its request; or why it has none."""
        seated = Counter(other.owner for other in self._guests if other.owner)
        if seated[owner] >= self._each:
            return busy("this certificate's places are taken", PLACES_AGAIN)
        if seated.total() >= self._places:
            return busy("all its places are taken", PLACES_AGAIN)
        guest.owner = owner
        self._let_in()
        return None

    def left(self, guest: Guest) -> None:
        self._guests.pop(guest, None)
        self._let_in()

    # --- letting in --------------------------------------------------------------------------------------------------
    def _entering(self) -> list[Guest]:
        return [guest for guest in self._guests if not guest.owner]

    def _let_in(self) -> None:
        while (inside := Counter(guest.host for guest in self._entering())).total() < self._limits.handshakes:
            visitor = self._acceptor.next(inside)
            if visitor is None:
                return
            guest = Guest(visitor)
            self._guests[guest] = None
            guest.handshake = self._loop.create_task(self._shake_hands(guest, visitor.sock))

    async def _shake_hands(self, guest: Guest, sock: socket.socket) -> None:
        spare = sock.dup()  # to stay on when asyncio has let go of a handshake that failed
        try:
            context = telling(self._identity.accepting, sock)
            await self._loop.connect_accepted_socket(lambda: self._make(guest), sock, ssl=context)
        except OSError as error:
            self._stats.add("connections", label="refused")
            what = explain("peer", error, handshaking=True)
            self._log.warning("refused", address=guest.address, kind=type(what).__name__, what=str(what))
            await farewell(spare)
        finally:
            spare.close()
            if guest.transport is None:
                self.left(guest)

    def _press(self) -> None:
        """Put out those without a place whose time is over, and sooner while others wait."""
        now, entering = time.monotonic(), self._entering()
        wanted = self._acceptor.ready - (self._limits.handshakes - len(entering))
        for number, guest in enumerate(entering):
            if now - guest.born > self._limits.handshake_seconds:
                self._put_out(guest, "did not finish in time")
            elif number < wanted and now - guest.born > self._limits.pressed_seconds:
                self._put_out(guest, "did not finish in time while others waited")

    def _put_out(self, guest: Guest, why: str) -> None:
        self._guests.pop(guest, None)
        if guest.transport is not None:
            guest.transport.abort()
        elif guest.handshake is not None:
            guest.handshake.cancel()
        self._stats.add("connections", label="dropped")
        self._log.warning("dropped", address=guest.address, what=f"sent a TLS hello; {why}")

    def _watch(self, source: Any, ready: Callable[[], None]) -> None:
        def look() -> None:
            ready()
            self._let_in()

        self._loop.add_reader(source, look)
