"""What went wrong in a socket or in TLS, as an error that names the peer and the remedy."""

from __future__ import annotations

import ssl

from ...protocols.errors import PeerDropped, PeerError, PeerGone, PeerProtocolError, PeerRefused
from .frames import READ_ITS_MESSAGE

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
    """The typed error for a failed socket or TLS call."""
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
