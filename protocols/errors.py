"""What can go wrong, and who can do something about it.

Every error a user may meet is one line: what happened, where, and the remedy. Messages never carry
values, shares or keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import BlindformerError


@contextmanager
def writing(what: object, remedy: str, kind: type[BlindformerError] = BlindformerError) -> Iterator[None]:
    """The system's refusal to write `what`, a file or folder, as an error of ours."""
    try:
        yield
    except OSError as error:
        raise kind(f"{what}: cannot be written ({error.strerror or error}); {remedy}") from None


class PeerError(BlindformerError):
    """Another party is unreachable, slow, incompatible or breaks the protocol. `party` names it."""

    def __init__(self, party: str, what: str, remedy: str) -> None:
        self.party = party
        self.what = what
        self.remedy = remedy
        super().__init__(f"{party}: {what}; {remedy}")


class PeerGone(PeerError):
    """The connection ended before the session did."""


class PeerDropped(PeerGone):
    """The peer closed the connection during the TLS handshake: it does not speak TLS, or admits no more connections."""


class PeerTimeout(PeerError):
    """The peer sent nothing (or took nothing) for longer than the timeout."""


class PeerProtocolError(PeerError):
    """The peer sent something this point of the protocol does not allow."""


class PeerDeviated(PeerProtocolError):
    """The peer sent what the protocol does not send, as an audit shows (parties/session/audits.py)."""


class PeerRefused(PeerError):
    """The peer (or its certificate) is not who it must be, or it refused us."""


class PeerDisagrees(PeerError):
    """The peer runs another version, program, ring or plan."""


class CorrelationError(BlindformerError):
    """Correlated randomness is missing, of the wrong shape, or already used. Never recovered from."""
