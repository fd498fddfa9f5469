"""What the children of every service do first and last: prove who is who, hear the first message, say why it ends."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography import x509

from ...protocols.channel import Channel
from ...protocols.errors import PeerError, PeerGone
from ...versions import spoken_version
from ..admission import Busy
from ..certificates import client_context, server_context
from ..meeting import tell
from ..probe import Facts, answer_probe, is_probe
from ..tls import TlsChannel, welcome
from .child import Control, Stopping

FIRST_SECONDS = 10.0  # for the handshake, and of silence before the first message
FIRST_LIMIT = 16384  # bytes of the first message: a hello, or a probe that names programs


class Identity:
    """This party's certificate and key: contexts to listen and to dial with. `reload` reads the files again.

    Errors: `CertificateError`; after one in `reload` the contexts are the old ones.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.role = folder, role
        self.reload()

    def reload(self) -> None:
        accepting = server_context(self.folder, self.role)
        # A dealer dials nobody, and its certificate is not good for it.
        dialling = None if self.role == "dealer" else client_context(self.folder, self.role)
        mine = x509.load_pem_x509_certificate((self.folder / f"{self.role}.pem").read_bytes())
        self.accepting, self._dialling = accepting, dialling
        self.expires = mine.not_valid_after_utc.timestamp()

    @property
    def dialling(self) -> ssl.SSLContext:
        assert self._dialling is not None
        return self._dialling

    def facts(self, config: str, programs: Collection[str] = ()) -> Facts:
        """What this party says of itself to a probe."""
        return Facts(blindformer=spoken_version(), role=self.role, config=config, programs=list(programs))


def greet(
    sock: socket.socket, control: Control, identity: Identity, roles: Collection[str], facts: Facts
) -> tuple[TlsChannel, dict[str, Any]] | None:
    """The channel to a peer with a good certificate of one of `roles`, and its first message.

    None if that was a probe (parties/probe.py), which is answered then. Errors: `PeerError`, of which the peer is told.
    """
    channel = welcome(sock, identity.accepting, roles, timeout=FIRST_SECONDS, handshake_seconds=FIRST_SECONDS)
    with telling(identity.role, lambda: [channel]):
        message = channel.recv_message(FIRST_LIMIT)
        if not is_probe(message):
            return channel, message
        control.probing(channel.peer, channel.fingerprint)
        answer_probe(channel, message, facts)
        channel.close()
    return None


@contextmanager
def telling(role: str, channels: Callable[[], Sequence[Channel]]) -> Iterator[None]:
    """Whatever ends the session early: the peers of `channels` are told, as far as it is their business."""
    try:
        yield
    except Stopping:
        tell(channels(), PeerGone(role, "is stopping", "ask again when it is back"))
        raise
    except Busy as busy:
        for channel in channels():
            channel.timeout = min(channel.timeout, 1.0)
            if channel.peer != busy.party:
                with suppress(PeerError):
                    channel.send_message({"busy": busy.retry_after, "why": busy.why})
            channel.close()
        raise
    except PeerError as error:
        tell(channels(), error)
        raise
    except Exception:
        tell(channels(), PeerGone(role, "has failed", "see its log, then open a new session"))
        raise
