"""TLS contexts of a party, made from its folder: TLS 1.3, a certificate on both sides, and no revoked one.

The list of revoked certificates (a CRL, RFC 5280) lies beside the CA's certificate, and is good for as long as the CA:
one that ended before would shut everybody out on a day nobody thought of. So an old list is as good as a new one where
nothing newer is known; a service goes back to no older one (identity.py). Lists of other CAs may end sooner.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from cryptography import x509

from .authority import (
    CA,
    REVOKED,
    CertificateError,
    check_private,
    check_word,
    issued_by,
    load_certificate,
    now,
    party_folder,
    role_in,
)

_AGAIN = "copy the newest one here, from whoever runs the CA"


def server_context(folder: str | Path, role: str, name: str | None = None) -> ssl.SSLContext:
    """The context of a side that listens: TLS 1.3, and every peer must show a certificate of this CA that is not on its
    list of revoked certificates. `name`: of a party whose files lie in a folder of that name.

    Errors: `CertificateError`, as for `client_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a session resumed is a certificate not checked
    return _fill_context(context, party_folder(Path(folder), role, name), role)


def client_context(folder: str | Path, role: str, name: str | None = None) -> ssl.SSLContext:
    """The context of a side that dials: TLS 1.3, the peer's certificate must be of this CA, not revoked, and name the
    host dialled.

    Errors: `CertificateError` when a file of `role` is missing, expired, of another role or CA, its key is open
    to other users of this machine, or the list of revoked certificates cannot be believed.
    """
    return _fill_context(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), party_folder(Path(folder), role, name), role)


def _fill_context(context: ssl.SSLContext, folder: Path, role: str) -> ssl.SSLContext:
    check_word(role)
    authority, file, key = folder / CA, folder / f"{role}.pem", _key_of(folder, role)
    certificate = load_certificate(file)
    if (own := role_in(certificate)) != role:
        raise CertificateError(f"{file} is the certificate of {own or 'no role'}, not of {role}; name the right file")
    if certificate.not_valid_after_utc <= now():
        raise CertificateError(f"{file} expired on {certificate.not_valid_after_utc:%Y-%m-%d}; make new certificates")
    if not issued_by(certificate, load_certificate(authority)):
        raise CertificateError(f"{file} is not from the CA in {authority}; copy both from one folder")
    if not key.is_file():
        raise CertificateError(f"{key} is missing; copy it from where the certificates were made, for {role} only")
    if not _is_credential(key):
        check_private(key)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority)
    if read_revoked(folder) is not None:
        context.load_verify_locations(folder / REVOKED)
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    try:
        context.load_cert_chain(file, key)
    except ssl.SSLError:
        raise CertificateError(f"{key} does not belong to {file}; copy both from one folder") from None
    return context


def _key_of(folder: Path, role: str) -> Path:
    """The key that systemd has handed over (LoadCredential=), else the one beside the certificate. So a service that
    may not read keys in /etc reads certificates and lists there, which change while it runs."""
    handed = Path(os.environ.get("CREDENTIALS_DIRECTORY", folder)) / f"{role}.key"
    return handed if handed.is_file() else folder / f"{role}.key"


def _is_credential(key: Path) -> bool:
    """Whether systemd handed it over: in a folder that only this service can enter. It lets the service in by an access
    list, which looks like a mode that is open to a group."""
    return os.environ.get("CREDENTIALS_DIRECTORY") == str(key.parent.absolute())


def read_revoked(folder: Path) -> x509.CertificateRevocationList | None:
    """The list in `folder`; None if there is none.

    Errors: `CertificateError` if the list cannot be read, has ended, or is not from the CA beside it.
    """
    file, authority = folder / REVOKED, folder / CA
    if not file.is_file():
        return None
    content = file.read_bytes()
    try:
        revoked = x509.load_pem_x509_crl(content)
        entries = sum(1 for _ in revoked)
    except ValueError:
        revoked, entries = None, 0
    # OpenSSL reads all that is in the file, and would trust a certificate in it as another CA.
    if revoked is None or entries != len(revoked) or content.count(b"-----BEGIN") != 1:
        raise CertificateError(f"{file} is not one list of revoked certificates in PEM form; {_AGAIN}")
    issuer = load_certificate(authority)
    if revoked.issuer != issuer.subject or not revoked.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
        raise CertificateError(f"{file} is not from the CA in {authority}; copy its own here, or remove this one")
    if revoked.next_update_utc is not None and revoked.next_update_utc <= now():
        raise CertificateError(f"{file} ended on {revoked.next_update_utc:%Y-%m-%d}; {_AGAIN}")
    if revoked.last_update_utc > now():
        what = f"is good from {revoked.last_update_utc:%Y-%m-%d %H:%M} UTC"
        raise CertificateError(f"{file} {what}; compare the clocks of this machine and the CA's")
    return revoked


def list_number(revoked: x509.CertificateRevocationList) -> int:
    """It counts up with each list of a CA."""
    try:
        return revoked.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def is_listed(revoked: x509.CertificateRevocationList | None, serial: int) -> bool:
    return revoked is not None and revoked.get_revoked_certificate_by_serial_number(serial) is not None
