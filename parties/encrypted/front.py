"""HTTPS by uvicorn, with what it has no option for: who the other side is, and no patience with silence."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..frames import HEADER_BYTES, MESSAGE, pack_header, pack_message
from ..tls import name_of, role_of

FIRST_SECONDS = 10.0  # from the TLS handshake to the end of a request's head
_ANOTHER_DOOR = pack_message(
    {"error": {"kind": "PeerRefused", "what": "encrypted queries are served here; ask with protocol ckks"}}
)


class ClientProtocol(H11Protocol):
    """One connection, one request. `state.peer` is the SHA-256 of the peer's certificate, `state.role` the role in it,
    `state.serial` its number, `state.name` who it is for.

    A certificate of this CA is asked for in the handshake (certificates.server_context), so there is one.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        assert tls is not None
        shown: bytes = tls.getpeercert(binary_form=True)
        said = tls.getpeercert()
        peer = {"peer": hashlib.sha256(shown).hexdigest(), "role": role_of(said), "serial": said["serialNumber"]}
        peer["name"] = name_of(said) or peer["peer"]
        self.app_state: dict[str, Any] = {**self.app_state, **peer}
        self._first = self.loop.call_later(FIRST_SECONDS, self._silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._first.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.cycle is None and b"\0" in data[:HEADER_BYTES]:
            # A party of sessions has dialled this door: h11 would wait for the end of a line that never comes.
            self.transport.write(pack_header(MESSAGE, len(_ANOTHER_DOOR)) + _ANOTHER_DOOR)
            self.transport.close()
            return
        super().data_received(data)

    def _silent(self) -> None:
        if self.cycle is None:  # one that was turned away and does not hang up, too
            self.transport.abort()


class Front(uvicorn.Server):
    """Stops by `should_exit` alone: signals are the service's business."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
