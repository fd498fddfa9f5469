"""A word to who is refused: asyncio aborts a handshake that fails, and the alert that says why would never leave."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from typing import Any, cast

LINGER_SECONDS = 1.0


def with_alerts(context: ssl.SSLContext, sock: socket.socket) -> ssl.SSLContext:
    """`context`, for one connection over `sock` (loop.connect_accepted_socket)."""
    return cast(ssl.SSLContext, _WithAlerts(context, sock))


class _WithAlerts:
    """All that asyncio asks of a context."""

    def __init__(self, context: ssl.SSLContext, sock: socket.socket) -> None:
        self._context, self._sock = context, sock

    def wrap_bio(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any) -> ssl.SSLObject:
        self._context.sslobject_class = _Handshake  # type: ignore[assignment]  # as ssl's documentation has it
        made = self._context.wrap_bio(incoming, outgoing, *args, **options)
        assert isinstance(made, _Handshake)
        made.sock, made.outgoing = self._sock, outgoing
        return made


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
