"""The HTTPS service: TLS handshakes and first requests, bounded in number and time (host.py).

A connection costs a socket until its peer has sent a whole TLS hello (service/pending.py). It then has seconds to
finish the handshake and to send a request's head. With its request it takes a place until the connection ends; each
certificate has its share of the places.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Mapping, Sequence

import uvicorn

from ...transport.frames import explain
from ..host import Host
from ..identity import Identity
from ..pending import Pending
from .app import AppState
from .handshakes import linger, with_alerts
from .refusals import Refusal


class IncomingConnection:
    """`owner`: SHA-256 of the certificate of one that has a place."""

    def __init__(self, pending: Pending, number: int) -> None:
        self.host, self.address, self.number, self.born = pending.host, pending.address, number, time.monotonic()
        self.transport: asyncio.Transport | None = None
        self.handshake: asyncio.Task[None] | None = None
        self.owner = ""


class IncomingConnections:
    """All of them (host.Connections). `make` gives a connection's protocol, which calls `arrived`, `take_place` and
    `left`."""

    def __init__(
        self,
        host: Host,
        identity: Identity,
        state: AppState,
        server: uvicorn.Server,
        make: Callable[[IncomingConnections, IncomingConnection], asyncio.Protocol],
    ) -> None:
        self._host, self._identity, self._state, self._server, self._make = host, identity, state, server, make
        self._all: dict[IncomingConnection, None] = {}  # in the order in which they came
        self._numbers = itertools.count()

    @property
    def any(self) -> bool:
        return bool(self._all)

    def entering(self) -> Sequence[IncomingConnection]:
        return [connection for connection in self._all if not connection.owner]

    def start(self, pending: Pending) -> None:
        connection = IncomingConnection(pending, next(self._numbers))
        self._all[connection] = None
        connection.handshake = asyncio.create_task(self._shake_hands(connection, pending.sock))

    def drop(self, entering: IncomingConnection, why: str) -> None:
        self._all.pop(entering, None)
        if entering.transport is not None:
            entering.transport.abort()
        elif entering.handshake is not None:
            entering.handshake.cancel()
        self._host.metrics.add("connections", label="dropped")
        self._host.log.warning("dropped", address=entering.address, what=f"sent a TLS hello; {why}")

    def on_turn(self) -> None:
        self._state.store.expire()

    def on_child_exit(self) -> None:
        """A worker's end shows at its socket (workers.py)."""

    def end_revoked(self) -> None:
        """New certificates are for connections to come, and clients' keys stay, but not those of who was revoked."""
        store = self._state.store
        for item in [item for item in store.sets.values() if self._identity.revoked(item.serial)]:
            store.drop(item)

    def ask_to_stop(self) -> None:
        self._state.stopping = self._server.should_exit = True
        for connection in self.entering():
            self.drop(connection, "the service stops")

    def end_all(self) -> None:
        self.ask_to_stop()
        self._server.force_exit = True

    def gauges(self) -> Mapping[str, float]:
        store = self._state.store
        return {"sessions": len(store.sets), "key_bytes": store.bytes, **self._state.places.gauges}

    # -- what a connection's protocol says

    def arrived(self, connection: IncomingConnection, transport: asyncio.Transport) -> None:
        """Its handshake is done."""
        connection.transport = transport
        self._host.metrics.add("connections", label="introduced")

    def take_place(self, connection: IncomingConnection, owner: str) -> Refusal | None:
        """A place for its request; or why it has none."""
        refusal = self._state.places.open(connection.number, owner)
        if refusal is None:
            connection.owner = owner
            self._host.let_in()
        return refusal

    def left(self, connection: IncomingConnection) -> None:
        self._all.pop(connection, None)
        self._state.places.leave(connection.number)
        self._host.let_in()

    async def _shake_hands(self, connection: IncomingConnection, sock: socket.socket) -> None:
        spare = sock.dup()  # to stay on when asyncio has let go of a handshake that failed
        try:
            context = with_alerts(self._identity.accepting, sock)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: self._make(self, connection), sock, ssl=context)
        except OSError as error:
            self._host.metrics.add("connections", label="refused")
            what = explain("peer", error, handshaking=True)
            self._host.log.warning("refused", address=connection.address, kind=type(what).__name__, what=str(what))
            await linger(spare)
        finally:
            spare.close()
            if connection.transport is None:
                self.left(connection)
