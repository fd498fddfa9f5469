"""TLS to listen with for good, under asyncio: the newest certificates for each connection; a word to who is refused."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from typing import Any

from ...protocols.errors import PeerError
from ..service.identity import Identity
from ..wires import explain

LINGER_SECONDS = 1.0


def listening(identity: Identity, refused: Callable[[PeerError], None]) -> ssl.SSLContext:
    """Every connection has the context that `identity` has then, with its CA and its list of revoked ones. `refused` is
    told of handshakes that fail."""

    class Told(_Handshake):
        tell = staticmethod(refused)

    class Current(ssl.SSLContext):
        def wrap_bio(
            self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, *args: Any, **options: Any
        ) -> ssl.SSLObject:
            identity.accepting.sslobject_class = Told  # type: ignore[assignment]  # as ssl's documentation has it
            made = identity.accepting.wrap_bio(incoming, outgoing, *args, **options)
            assert isinstance(made, Told)
            made.incoming, made.outgoing = incoming, outgoing
            return made

    return Current(ssl.PROTOCOL_TLS_SERVER)


class _Handshake(ssl.SSLObject):
    """asyncio aborts a handshake that fails: the alert that says why would never leave, and nothing would be logged. So
    this one seems to wait a little longer, where there is an alert: what is waiting to be sent is sent then."""

    tell: Callable[[PeerError], None]
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    failed: ssl.SSLError | None = None
    until = 0.0

    def do_handshake(self) -> None:
        if self.failed is None:
            try:
                return super().do_handshake()
            except ssl.SSLWantReadError:
                raise
            except ssl.SSLError as error:
                self.tell(explain("peer", error, handshaking=True))
                if not self.outgoing.pending:  # a stranger that speaks no TLS
                    raise
                self.failed, self.until = error, time.monotonic() + LINGER_SECONDS
        self.incoming.read()  # what it still sends is for nobody
        if time.monotonic() < self.until:
            raise ssl.SSLWantReadError
        raise self.failed
