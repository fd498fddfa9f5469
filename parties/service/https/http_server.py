"""HTTPS by uvicorn, with what it has no option for: who the other side is, and connections that we let in."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...transport.frames import HEADER_BYTES, MESSAGE, pack_header, pack_message
from ...transport.tls import PeerCertificate
from .connections import IncomingConnection, IncomingConnections

_OTHER_PROTOCOL = pack_message(
    {"error": {"kind": "PeerRefused", "what": "encrypted queries are served here; ask with protocol ckks"}}
)


class ClientProtocol(H11Protocol):
    """One connection, one request. `state.peer` is the SHA-256 of the peer's certificate, `state.role` the role in it,
    `state.serial` its number, `state.name` who it is for; `state.connection` its number;
    `state.take_place` takes a place for the request.

    A certificate of this CA is asked for in the handshake (certificates.server_context), so there is one.
    """

    def __init__(
        self, *args: Any, connections: IncomingConnections, connection: IncomingConnection, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._connections, self._connection = connections, connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        assert tls is not None
        shown = PeerCertificate(tls)
        who = {"peer": shown.fingerprint, "role": shown.role, "serial": shown.serial, "name": shown.name}
        take_place = partial(self._connections.take_place, self._connection, shown.fingerprint)
        self.app_state |= {**who, "connection": self._connection.number, "take_place": take_place}
        self._connections.arrived(self._connection, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.left(self._connection)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None and b"\0" in data[:HEADER_BYTES]:
            # A party of sessions has dialled this port: h11 would wait for the end of a line that never comes.
            self.transport.write(pack_header(MESSAGE, len(_OTHER_PROTOCOL)) + _OTHER_PROTOCOL)
            self.transport.close()
            return
        super().data_received(data)


class HttpServer(uvicorn.Server):
    """Stops only by `should_exit`: signals are the host's business. `protocol` makes that of a connection which we have
    accepted: uvicorn itself would take any number of handshakes, and wait long for each."""

    async def startup(self, sockets: Any = None) -> None:
        self.servers = []
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def protocol(self, connections: IncomingConnections, connection: IncomingConnection) -> ClientProtocol:
        state = dict(self.lifespan.state)
        return ClientProtocol(self.config, self.server_state, state, connections=connections, connection=connection)
