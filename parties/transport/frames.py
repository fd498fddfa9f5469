"""What a frame is, and the error that a failed socket or TLS call becomes.

A frame has eight bytes of header (kind, length), then the payload. A tensor frame carries bytes whose number the
receiver knows beforehand; a message frame carries one small JSON object. A header is compared with what the receiver
expects before a single byte is allocated for the payload.
"""

from __future__ import annotations

import contextlib
import json
import ssl
from collections.abc import Mapping
from typing import Any

from ...protocols.channel import Buffer, Channel
from ...protocols.errors import (
    BlindformerError,
    PeerDisagrees,
    PeerDropped,
    PeerError,
    PeerGone,
    PeerProtocolError,
    PeerRefused,
)

HEADER_BYTES = 8
MESSAGE_LIMIT = 65536
ERROR_TEXT_LIMIT = 300

TENSOR = 0x54  # "T"
MESSAGE = 0x4A  # "J"

SAME_PROGRAM = "both parties must run the same version, program and plan: compare them, then run again"
READ_ITS_MESSAGE = "see {peer}'s own message, then run the query again"

# The kinds of failure that a peer may name. Any other becomes PeerRefused.
_KINDS: dict[str, type[PeerError]] = {
    "PeerDisagrees": PeerDisagrees,
    "PeerGone": PeerGone,
    "PeerProtocolError": PeerProtocolError,
    "PeerRefused": PeerRefused,
    "PeerTimeout": PeerGone,  # the peer waited for a third party; seen from here it is the peer that is gone
}


def as_bytes(data: Buffer) -> memoryview:
    """A flat view of the bytes of any contiguous buffer, without a copy. Errors: TypeError if not contiguous."""
    view = memoryview(data)
    if view.nbytes == 0:  # a view with a zero in its shape cannot be cast
        return memoryview(b"")
    return view if view.format == "B" and view.ndim == 1 else view.cast("B")


def pack_header(kind: int, length: int) -> bytes:
    return bytes((kind,)) + length.to_bytes(HEADER_BYTES - 1, "big")


def pack_message(message: Mapping[str, Any]) -> bytes:
    """One JSON object as bytes. Errors: ValueError or TypeError if it is not plain JSON."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode()


def _no_constants(name: str) -> None:
    raise ValueError(name)


def unpack_message(peer: str, payload: bytes | bytearray | memoryview) -> dict[str, Any]:
    """Parse a message. Errors: `PeerProtocolError` if it is not a JSON object."""
    try:
        message = json.loads(bytes(payload), parse_constant=_no_constants)
    except (ValueError, RecursionError):  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        message = None
    if not isinstance(message, dict):
        raise PeerProtocolError(peer, "sent a message that is not a JSON object", SAME_PROGRAM)
    return message


PRINTABLE = r"^[^\p{C}\p{Zl}\p{Zp}]*$"
"""A text for a terminal; for pydantic."""


def printable(text: object, limit: int = ERROR_TEXT_LIMIT) -> str:
    """A peer's text, made safe for a terminal and a log: printable characters on one line, at most `limit`."""
    raw = text[: 4 * limit] if isinstance(text, str) else ""
    clean = " ".join("".join(c if c.isprintable() else " " for c in raw).split())
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def error_message(error: Exception) -> dict[str, Any]:
    """The message that tells a peer why this side stops. Only for errors whose text a peer may read."""
    return {"error": {"kind": type(error).__name__, "what": printable(str(error))}}


def send_error(channel: Channel, error: BlindformerError) -> None:
    """Tell the peer why this side stops, if it still listens. Raises nothing: the caller raises its own error."""
    with contextlib.suppress(PeerError):
        channel.send_message(error_message(error))


def peer_error(peer: str, message: Mapping[str, Any]) -> PeerError | None:
    """The error that a message reports, or None. The peer's text is quoted, never trusted."""
    if "error" not in message:
        return None
    body = message["error"]
    fields = body if isinstance(body, Mapping) else {"what": body}
    what = printable(fields.get("what")) or "no reason given"
    kind = fields.get("kind")
    cls = _KINDS.get(kind, PeerRefused) if isinstance(kind, str) else PeerRefused
    return cls(peer, f"stopped and said: {what}", "resolve that on its side, then run again")


class Incoming:
    """The frame being received.

    The next bytes go into `view`. `advance(n)` notes that n bytes are there and returns True when the frame is
    complete; then `payload` holds it.
    """

    __slots__ = ("_exact", "_filled", "_header", "_kind", "_size", "_surprise", "payload", "peer", "view")

    def __init__(self, peer: str, kind: int, size: int, exact: bool) -> None:
        self.peer = peer
        self.payload: bytearray | None = None
        self._header = bytearray(HEADER_BYTES)
        self._kind, self._size, self._exact = kind, size, exact
        self._filled = 0
        self._surprise = False
        self.view = memoryview(self._header)

    @classmethod
    def tensor(cls, peer: str, size: int) -> Incoming:
        if size < 0:
            raise ValueError(f"a frame cannot have {size} bytes")
        return cls(peer, TENSOR, size, exact=True)

    @classmethod
    def message(cls, peer: str, limit: int = MESSAGE_LIMIT) -> Incoming:
        return cls(peer, MESSAGE, limit, exact=False)

    @property
    def limit(self) -> int:
        """The most bytes that the frame may carry."""
        return self._size

    @property
    def started(self) -> bool:
        return self._filled > 0 or self.payload is not None

    @property
    def in_step(self) -> bool:
        """Whether the stream stands between two frames."""
        return not self.started or (self.payload is not None and not len(self.view))

    def advance(self, count: int) -> bool:
        self._filled += count
        self.view = self.view[count:]
        if len(self.view):
            return False
        if self.payload is None:
            self._open_payload()
            if len(self.view):
                return False
        if self._surprise:
            self._reject_surprise()
        return True

    def _open_payload(self) -> None:
        kind, length = self._header[0], int.from_bytes(self._header[1:], "big")
        # An error may come in place of any frame, so a message is accepted where a tensor is expected.
        self._surprise = kind == MESSAGE and self._kind == TENSOR and length <= MESSAGE_LIMIT
        if not self._surprise:
            self._check(kind, length)
        self.payload = bytearray(length)
        self.view = memoryview(self.payload)

    def _check(self, kind: int, length: int) -> None:
        if kind not in (TENSOR, MESSAGE):
            raise PeerProtocolError(self.peer, "sent bytes that are not a Blindformer frame", SAME_PROGRAM)
        names = {TENSOR: "a tensor frame", MESSAGE: "a message"}
        if kind != self._kind:
            what = f"sent {names[kind]} where {names[self._kind]} was expected"
        elif self._exact and length != self._size:
            what = f"sent a frame of {length} bytes where {self._size} were expected"
        elif length > self._size:
            what = f"sent a message of {length} bytes where at most {self._size} are allowed"
        else:
            return
        raise PeerProtocolError(self.peer, what, SAME_PROGRAM)

    def _reject_surprise(self) -> None:
        error = peer_error(self.peer, unpack_message(self.peer, self.payload or b""))
        raise error or PeerProtocolError(self.peer, "sent a message where a tensor frame was expected", SAME_PROGRAM)

    def ended(self) -> PeerError:
        """The error for a stream that ends here."""
        where = "in the middle of a frame" if self.started else "before the frame this side was waiting for"
        return PeerGone(self.peer, f"closed the connection {where}", READ_ITS_MESSAGE.format(peer=self.peer))


_RENEW = "make new certificates with `blindformer certs`"
_SAME_CA = "all parties need certificates from the same CA: share one ca.pem"
NEW_CERTIFICATE = "ask whoever runs the CA for a new one"
_NEWEST = "copy the newest ca.pem and revoked.pem here"
_SPEAK_TLS = "use TLS on both sides, and check the address and port"

# X509_V_ERR_* of OpenSSL: why this side turned a certificate down.
_CERTIFICATE_FAULTS: dict[int, tuple[str, str]] = {
    9: ("its certificate is not valid yet", "compare the clocks of both machines"),
    10: ("its certificate has expired", _RENEW),
    18: ("its certificate is self-signed", _SAME_CA),
    19: ("its certificate comes from another CA", _SAME_CA),
    20: ("its certificate comes from another CA", _SAME_CA),
    21: ("its certificate comes from another CA", _SAME_CA),
    23: ("its certificate was revoked", NEW_CERTIFICATE),
    3: ("its certificate cannot be checked: this side's list of revoked ones is of another CA", _NEWEST),
    8: ("its certificate cannot be checked: this side's list of revoked ones is of another CA", _NEWEST),
    12: ("its certificate cannot be checked: this side's list of revoked ones has ended", _NEWEST),
    7: ("its certificate is not signed by this side's CA", _SAME_CA),
    26: ("its certificate is not made for this role", "give it the certificate of its own role"),
    62: ("its certificate names another host", "make its certificate with the host name this side dials"),
    64: ("its certificate names another address", "make its certificate with the address this side dials"),
}

# SSLError.reason: alerts the peer sent about this side's certificate, and peers that do not speak our TLS.
_REASONS: dict[str, tuple[str, str]] = {
    "TLSV1_ALERT_UNKNOWN_CA": ("refused this side's certificate: it comes from another CA", _SAME_CA),
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": ("refused this side's certificate: it has expired", _RENEW),
    "SSLV3_ALERT_CERTIFICATE_REVOKED": ("refused this side's certificate: it was revoked", NEW_CERTIFICATE),
    "SSLV3_ALERT_BAD_CERTIFICATE": ("refused this side's certificate", _SAME_CA),
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": ("refused this side's certificate", _SAME_CA),
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": (
        "refused this side's certificate: it is not made for this role",
        "use the certificate of this side's own role",
    ),
    "TLSV1_ALERT_DECRYPT_ERROR": ("refused this side's certificate: a signature is wrong", _SAME_CA),
    "TLSV1_ALERT_PROTOCOL_VERSION": ("does not speak TLS 1.3", _SPEAK_TLS),
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": (
        "refused this side: it showed no certificate",
        "give this side the certificate of its role",
    ),
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": ("showed no certificate", "give it the certificate of its role"),
    "UNSUPPORTED_PROTOCOL": ("does not speak TLS 1.3", "update it: older TLS versions are not accepted"),
    "HTTP_REQUEST": ("speaks HTTP, not TLS", _SPEAK_TLS),
    "HTTPS_PROXY_REQUEST": ("speaks HTTP, not TLS", _SPEAK_TLS),
    "WRONG_VERSION_NUMBER": ("does not speak TLS", _SPEAK_TLS),
    "PACKET_LENGTH_TOO_LONG": ("does not speak TLS", _SPEAK_TLS),
    "RECORD_LAYER_FAILURE": ("does not speak TLS", _SPEAK_TLS),
}


def explain(peer: str, error: OSError, handshaking: bool = False) -> PeerError:
    """The typed error of a failed socket or TLS call, which names the peer and the remedy."""
    if isinstance(error, ssl.SSLCertVerificationError):
        fault = _CERTIFICATE_FAULTS.get(error.verify_code)
        what, remedy = fault or (f"its certificate is not accepted: {error.verify_message}", _SAME_CA)
        return PeerRefused(peer, what, remedy)
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError) or not isinstance(error, ssl.SSLError):
        if handshaking:
            what = "closed the connection during the TLS handshake"
            return PeerDropped(peer, what, "see its own message; " + _SPEAK_TLS)
        return PeerGone(peer, "closed the connection", READ_ITS_MESSAGE.format(peer=peer))
    reason = error.reason or "unknown"
    known = _REASONS.get(reason)
    if known is not None and (handshaking or "ALERT" in reason):
        return PeerRefused(peer, *known)
    if handshaking or "ALERT" in reason:
        return PeerRefused(peer, f"the TLS handshake failed ({reason})", _SAME_CA + "; " + _SPEAK_TLS)
    what = f"sent bytes that TLS does not accept ({reason})"
    return PeerProtocolError(peer, what, "something between the parties alters the traffic: check the network")
