"""What the children of every service do first and last: prove who is who, hear the first message, say why it ends."""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ...protocols.channel import Channel
from ...protocols.errors import PeerError, PeerGone
from ..certificates.identity import Identity
from ..session.compute_slots import SlotsBusy
from ..session.meeting import tell
from ..transport.probe import PeerFacts, answer_probe, is_probe
from ..transport.tls import TlsChannel, welcome
from .child import Control, Stopping

FIRST_SECONDS = 10.0  # for the handshake, and of silence before the first message
FIRST_LIMIT = 16384  # bytes of the first message: a hello, or a probe that names programs


def greet(
    sock: socket.socket, control: Control, identity: Identity, roles: Collection[str], facts: PeerFacts
) -> tuple[TlsChannel, dict[str, Any]] | None:
    """The channel to a peer with a good certificate of one of `roles`, and its first message.

    None if that was a probe (transport/probe.py), which is answered. Errors: `PeerError`, of which the peer is told.
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
    except Stopping as stopping:
        tell(channels(), stopping.why or PeerGone(role, "is stopping", "ask again when it is back"))
        raise
    except SlotsBusy as busy:
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
