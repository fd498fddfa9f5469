"""The service of encrypted queries: one process that speaks HTTPS, with workers (workers.py).

A connection costs a socket until its peer has sent a whole TLS hello (acceptor.py). It then has seconds to finish the
handshake and to send a request's head. With its request it takes a place until the connection ends; each certificate
has its share of the places. uvicorn reads and writes HTTP; connections, signals and the end are the service's business.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from pathlib import Path
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from ....protocols.devices import DeviceError
from ...config import Settings
from ...session.compute_slots import SlotsBusy
from ...transport.frames import HEADER_BYTES, MESSAGE, explain, pack_header, pack_message
from ...transport.tls import PeerCertificate
from ..acceptor import Pending
from ..local_options import LocalOptions
from .app import GB, RequestService, make_app
from .workers import Workers

# Of a handshake in this process, unlike one in a process of its own, there may be many: 0.3 MB each. While others wait,
# an honest peer needs no longer than two round trips and its request's head.
ENTERING = {"handshakes": 64, "handshake_seconds": 10.0, "pressed_seconds": 1.0}
LINGER_SECONDS = 1.0
_OTHER_PROTOCOL = pack_message(
    {"error": {"kind": "PeerRefused", "what": "encrypted queries are served here; ask with protocol ckks"}}
)


class HttpsService(RequestService):
    """One server; clients' keys lie in its scratch folder."""

    role = "server"
    bounds = ENTERING
    helpers = "nobody: the client encrypts, and this server computes on ciphertexts"
    adversary = "a server that follows the protocol; it learns only sizes and times"

    def __init__(self, settings: Settings, scratch: Path, local: LocalOptions) -> None:
        if settings.server.device != "cpu":
            raise DeviceError("server.device: encrypted queries are answered on processors; leave it out")
        super().__init__(settings, scratch, local)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        mine = self.settings.server
        sizes = (int(mine.keys_memory_gb * GB), int(mine.weights_memory_gb * GB), mine.query_processes)

        def died(why: str) -> None:
            self.metrics.add("children_killed", label="worker")
            self.log.error("worker-replaced", what=why)

        words = [str(mine.folder), *map(str, sizes), *(["--any-ring"] if self.local.any_ring else [])]
        workers = Workers(self.limits.workers, words, self.limits.query_seconds, died)
        try:
            self.begin(workers, await workers.start())
            self.serve_requests()
            yield
        finally:
            await workers.close()

    def serve_requests(self) -> None:
        self.files = self.places + 2 * self.limits.handshakes  # a connection in the handshake takes two files
        self._connections = dict[IncomingConnection, None]()  # in the order in which they came
        self._numbers = itertools.count()
        self.http, self.http_state = (
            uvicorn.Config(
                make_app(self),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",  # what strangers send wrongly is in our log, and not on stderr besides
                access_log=False,
                server_header=False,
            ),
            ServerState(),
        )
        self.http.load()

    @property
    def connected(self) -> bool:
        return bool(self._connections)

    def entering(self) -> Sequence[IncomingConnection]:
        return [connection for connection in self._connections if not connection.owner]

    def start(self, pending: Pending) -> None:
        connection = IncomingConnection(pending, next(self._numbers))
        self._connections[connection] = None
        connection.handshake = asyncio.create_task(self._shake_hands(connection, pending.sock))

    def drop(self, entering: IncomingConnection, why: str) -> None:
        self._end(entering)
        self.metrics.add("connections", label="dropped")
        self.log.warning("dropped", address=entering.address, what=f"sent a TLS hello; {why}")

    def on_turn(self) -> None:
        self.store.expire()
        self.http_state.default_headers = [(b"date", formatdate(usegmt=True).encode())]

    def on_renewal(self) -> None:
        """New certificates are for connections to come, and clients' keys stay, but not those of who was revoked."""
        for item in [item for item in self.store.sets.values() if self.identity.revoked(item.serial)]:
            self.store.drop(item)

    def ask_to_stop(self) -> None:
        self.stopping = True
        for connection in self.entering():
            self.drop(connection, "the service stops")

    def end_all(self) -> None:
        for connection in list(self._connections):
            self._end(connection)

    def gauges(self) -> Mapping[str, float]:
        return {"sessions": len(self.store.sets), "key_bytes": self.store.bytes, **self.admission.gauges}

    # -- what a connection's protocol says

    def take_place(self, connection: IncomingConnection, owner: str) -> SlotsBusy | None:
        """A place for its request; or why it has none."""
        busy = self.admission.open(connection.number, owner)
        if busy is None:
            connection.owner = owner
            self.let_in()
        return busy

    def left(self, connection: IncomingConnection) -> None:
        self._connections.pop(connection, None)
        self.admission.leave(connection.number)
        self.let_in()

    def _end(self, connection: IncomingConnection) -> None:
        self._connections.pop(connection, None)
        if connection.transport is not None:
            connection.transport.abort()
        elif connection.handshake is not None:
            connection.handshake.cancel()

    async def _shake_hands(self, connection: IncomingConnection, sock: socket.socket) -> None:
        spare = sock.dup()  # to stay on when asyncio has let go of a handshake that failed
        try:
            context = with_alerts(self.identity.accepting, sock)
            loop = asyncio.get_running_loop()
            await loop.connect_accepted_socket(lambda: ClientProtocol(self, connection), sock, ssl=context)
        except OSError as error:
            self.metrics.add("connections", label="refused")
            what = explain("peer", error, handshaking=True)
            self.log.warning("refused", address=connection.address, kind=type(what).__name__, what=str(what))
            await linger(spare)
        finally:
            spare.close()
            if connection.transport is None:
                self.handshake_over(connection.network, introduced=False)
                self.left(connection)


class IncomingConnection:
    """`owner`: SHA-256 of the certificate of one that has a place."""

    def __init__(self, pending: Pending, number: int) -> None:
        self.network, self.address, self.number = pending.network, pending.address, number
        self.born = self.since = time.monotonic()
        self.transport: asyncio.Transport | None = None
        self.handshake: asyncio.Task[None] | None = None
        self.owner = ""


class ClientProtocol(H11Protocol):
    """One connection, one request. `state.peer` is the SHA-256 of the peer's certificate, `state.role` the role in it,
    `state.serial` its number, `state.name` who it is for; `state.connection` the connection's number;
    `state.take_place` takes a place for the request.

    A certificate of this CA is asked for in the handshake (`server_context`), so there is one.
    """

    def __init__(self, service: HttpsService, connection: IncomingConnection) -> None:
        super().__init__(service.http, service.http_state, {})
        self._service, self._connection = service, connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        assert tls is not None
        shown = PeerCertificate(tls)
        self.app_state |= {
            "peer": shown.fingerprint,
            "role": shown.role,
            "serial": shown.serial,
            "name": shown.name,
            "connection": self._connection.number,
            "take_place": lambda: self._service.take_place(self._connection, shown.fingerprint),
        }
        self._connection.transport, self._connection.since = transport, time.monotonic()
        self._service.handshake_over(self._connection.network, introduced=True)
        self._service.metrics.add("connections", label="introduced")

    def connection_lost(self, exc: Exception | None) -> None:
        self._service.left(self._connection)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None and b"\0" in data[:HEADER_BYTES]:
            # A party of sessions has dialled this port: h11 would wait for the end of a line that never comes.
            self.transport.write(pack_header(MESSAGE, len(_OTHER_PROTOCOL)) + _OTHER_PROTOCOL)
            self.transport.close()
            return
        super().data_received(data)


# --- a word to who is refused: asyncio aborts a handshake that fails, and the alert that says why would never leave ---


def with_alerts(context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLContext:
    """`context`, for one connection over `sock` (loop.connect_accepted_socket)."""
    return cast(ssl.SSLContext, _WithAlerts(context, sock))


class _WithAlerts:
    """All that asyncio asks of a context."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self._context, self._sock = context, sock

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        self._context.sslobject_class = _Handshake  # type: ignore[assignment]  # as ssl's documentation has it
        handshake = self._context.wrap_bio(incoming, outgoing, *args, **options)
        assert isinstance(handshake, _Handshake)
        handshake.sock, handshake.outgoing = self._sock, outgoing
        return handshake


class _Handshake(ssl.SSLObject):
    sock: socket.socket
    outgoing: ssl.MemoryBIO

    def do_handshake(self) -> None:
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError:
            with suppress(OSError):
                self.sock.send(self.outgoing.read())
            raise


async def linger(sock: socket.socket) -> None:
    """Stay until the other side has read why, or for a second: closed with unread bytes, the connection would be reset,
    and the alert lost."""
    loop = asyncio.get_running_loop()
    with suppress(OSError, TimeoutError):
        sock.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LINGER_SECONDS):
            while await loop.sock_recv(sock, 1 << 16):
                pass
