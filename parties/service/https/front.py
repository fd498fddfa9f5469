"""HTTPS by uvicorn, with what it has no option for: who the other side is, and an entrance of our own."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...transport.frames import HEADER_BYTES, MESSAGE, pack_header, pack_message
from ...transport.tls import name_of, role_of
from .entrance import Entrance, Guest

_ANOTHER_DOOR = pack_message(
    {"error": {"kind": "PeerRefused", "what": "encrypted queries are served here; ask with protocol ckks"}}
)


class ClientProtocol(H11Protocol):
    """One connection, one request. `state.peer` is the SHA-256 of the peer's certificate, `state.role` the role in it,
    `state.serial` its number, `state.name` who it is for; `state.seat` takes a place for the request.

    A certificate of this CA is asked for in the handshake (certificates.server_context), so there is one.
    """

    def __init__(self, *args: Any, entrance: Entrance, guest: Guest, **options: Any) -> None:
        super().__init__(*args, **options)
        self._entrance, self._guest = entrance, guest

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        assert tls is not None
        shown: bytes = tls.getpeercert(binary_form=True)
        said = tls.getpeercert()
        peer = hashlib.sha256(shown).hexdigest()
        seat = partial(self._entrance.seat, self._guest, peer)
        who = {"peer": peer, "role": role_of(said), "serial": said["serialNumber"], "name": name_of(said) or peer}
        self.app_state = {**self.app_state, **who, "seat": seat}
        self._entrance.arrived(self._guest, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._entrance.left(self._guest)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None and b"\0" in data[:HEADER_BYTES]:
            # A party of sessions has dialled this door: h11 would wait for the end of a line that never comes.
            self.transport.write(pack_header(MESSAGE, len(_ANOTHER_DOOR)) + _ANOTHER_DOOR)
            self.transport.close()
            return
        super().data_received(data)


class Front(uvicorn.Server):
    """Stops by `should_exit` alone: signals are the service's business. `open`: makes the entrance, given what makes
    the protocol of a connection; uvicorn itself would take any number of handshakes, and wait long for each."""

    def __init__(self, config: uvicorn.Config, open: Callable[[Callable[[Guest], asyncio.Protocol]], Entrance]) -> None:
        super().__init__(config)
        self._open = open

    async def startup(self, sockets: Any = None) -> None:
        await self.lifespan.startup()
        self.servers = []
        self.entrance = self._open(self._protocol)
        self._entering = asyncio.create_task(self.entrance.run())
        self._entering.add_done_callback(self._ended)
        self.started = True

    async def shutdown(self, sockets: Any = None) -> None:
        self._entering.cancel()
        with suppress(asyncio.CancelledError):
            await self._entering
        await super().shutdown()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def _protocol(self, guest: Guest) -> ClientProtocol:
        return ClientProtocol(self.config, self.server_state, self.lifespan.state, entrance=self.entrance, guest=guest)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.should_exit = True  # nobody would be let in any more
