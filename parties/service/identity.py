"""This party's certificate while a service runs: read from its folder again when files there change, or when told to.

For connections to come, what was read last and could be used is in force. Files that cannot be used change nothing, and
the log says so once. Sessions of a certificate that a new list revokes are ended (`on_renewal` of a service).
"""

from __future__ import annotations

import datetime
import ssl
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509

from ...protocols.errors import BlindformerError
from ..certificates import EXPIRY_DAYS
from ..certificates.tls_folder import (
    CA,
    REVOKED,
    CertificateError,
    client_context,
    is_listed,
    list_number,
    load_certificate,
    read_revoked,
    server_context,
    state_of,
)
from ..receipts.statement import Signer
from ..transport.frames import NEW_CERTIFICATE
from .logs import Log

LOOK_SECONDS = 1.0  # between looks at the files; what has changed is read when it is the same at the next look
WARN_SECONDS = 86400.0
DAY = 86400.0


class Identity:
    """This party's certificate and key: contexts to listen and to dial with, and `signer`. `reload` reads the files
    again.

    Errors: `CertificateError`; after one in `reload` all is as it was.
    """

    def __init__(self, folder: Path, role: str) -> None:
        self.folder, self.role = folder, role
        self.file = folder / f"{role}.pem"
        self._list: x509.CertificateRevocationList | None = None
        self._seen = self._glimpse = state_of(folder, role)
        self.reload()
        if self.revoked(self._serial):
            raise CertificateError(f"{self.file} was revoked; {NEW_CERTIFICATE}")

    def reload(self) -> None:
        self._seen = state_of(self.folder, self.role)
        accepting = server_context(self.folder, self.role)
        # A dealer dials nobody, and its certificate is not good for it.
        dialling = None if self.role == "dealer" else client_context(self.folder, self.role)
        mine, authority = load_certificate(self.file), load_certificate(self.folder / CA)
        revoked, signer = read_revoked(self.folder), Signer(self.folder, self.role)
        self._check_newer(revoked, authority.subject)
        ends = {self.file: mine.not_valid_after_utc, self.folder / CA: authority.not_valid_after_utc}
        if revoked is not None:
            ends[self.folder / REVOKED] = revoked.next_update_utc or authority.not_valid_after_utc
        self.accepting, self._dialling, self._list, self.signer = accepting, dialling, revoked, signer
        self._serial = f"{mine.serial_number:x}"
        self._first = min(ends, key=lambda file: ends[file])
        self._ends = ends[self._first]

    def changed(self) -> bool:
        """Whether files are others than those read last, used or not, and have been so since the last call: files that
        come one by one are read together."""
        before, self._glimpse = self._glimpse, state_of(self.folder, self.role)
        return self._glimpse == before and self._glimpse != self._seen

    @property
    def dialling(self) -> ssl.SSLContext:
        assert self._dialling is not None
        return self._dialling

    @property
    def expires(self) -> float:
        """When the first of the certificate, its CA and the list of revoked ones ends, seconds since 1970."""
        return self._ends.timestamp()

    def revoked(self, serial: str) -> bool:
        """Whether the list in force holds a certificate. `serial`: hex (transport.tls.PeerCertificate)."""
        return is_listed(self._list, int(serial, 16))

    def warning(self) -> str:
        """What somebody should see to, in a line; empty if there is nothing."""
        if self.revoked(self._serial):
            return f"{self.file} was revoked, so others refuse it; {NEW_CERTIFICATE}"
        left = (self._ends - datetime.datetime.now(datetime.UTC)).total_seconds() / DAY
        if left >= EXPIRY_DAYS:
            return ""
        when = f"ends on {self._ends:%Y-%m-%d %H:%M} UTC, in {left:.0f} days" if left > 0 else "has expired"
        return f"{self._first} {when}; renew it, and copy it here: it is taken without a restart"

    def _check_newer(self, revoked: x509.CertificateRevocationList | None, issuer: x509.Name) -> None:
        """Nobody who was revoked comes back because an old list, or none, was copied here."""
        before = self._list
        if before is None or before.issuer != issuer:
            return
        least = list_number(before)
        if revoked is None or list_number(revoked) < least:
            what = "is missing" if revoked is None else f"is number {list_number(revoked)}, older than the one in use"
            raise CertificateError(
                f"{self.folder / REVOKED} {what}; copy number {least} or a newer one here, or restart without"
            )


class Renewal:
    """Has a service take up new files. `taken`: called after they have been, to show out whoever was revoked."""

    def __init__(self, identity: Identity, log: Log, taken: Callable[[], None]) -> None:
        self._identity, self._log, self._taken = identity, log, taken
        self._look_at = self._warn_at = 0.0  # of the monotonic clock

    def look(self) -> None:
        """To be called at least once a second: reads what has changed, and warns once a day of what ends soon."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        if self._identity.changed():
            self.reload()
        if now >= self._warn_at:
            self._warn_at = now + WARN_SECONDS
            self._warn()

    def reload(self) -> None:
        try:
            self._identity.reload()
        except BlindformerError as error:
            self._log.error("certificates-kept", what=str(error))
            return
        self._log.info("certificates-reloaded")
        self._warn()
        self._taken()

    def _warn(self) -> None:
        if warning := self._identity.warning():
            self._log.warning("certificate-ends", what=warning)
