"""TLS contexts of a party, made from its folder: TLS 1.3, a certificate on both sides, none that was revoked."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

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
from .revocation import read_revoked


def server_context(folder: str | Path, role: str, name: str | None = None) -> ssl.SSLContext:
    """The context of a side that listens: TLS 1.3, and every peer must show a certificate of this CA, which the list of
    revoked ones, if there is one, does not hold. `name`: of a party whose files lie in a folder of that name.

    Errors: `CertificateError`, as for `client_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0  # a session resumed is a certificate not checked
    return _fill_context(context, party_folder(Path(folder), role, name), role)


def client_context(folder: str | Path, role: str, name: str | None = None) -> ssl.SSLContext:
    """The context of a side that dials: TLS 1.3, the peer's certificate must be of this CA, not revoked, and name the
    host dialled.

    Errors: `CertificateError` when a file of `role` is missing, expired, of another role or CA, its key is open
    to other users of this machine, or the list of revoked certificates is none that can be believed.
    """
    return _fill_context(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), party_folder(Path(folder), role, name), role)


def _fill_context(context: ssl.SSLContext, folder: Path, role: str) -> ssl.SSLContext:
    check_word(role)
    authority, file, key = folder / CA, folder / f"{role}.pem", _key_of(folder, role)
    certificate = load_certificate(file)
    found = role_in(certificate)
    if found != role:
        raise CertificateError(f"{file} is the certificate of {found or 'no role'}, not of {role}; name the right file")
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
    """What systemd has handed over (LoadCredential=), else beside the certificate. So a service that may not read keys
    in /etc reads certificates and lists there, which change while it runs."""
    handed = Path(os.environ.get("CREDENTIALS_DIRECTORY", folder)) / f"{role}.key"
    return handed if handed.is_file() else folder / f"{role}.key"


def _is_credential(key: Path) -> bool:
    """Whether systemd handed it over: in a folder that only this service can enter. It lets the service in by an access
    list, which looks like a mode that is open to a group."""
    return os.environ.get("CREDENTIALS_DIRECTORY") == str(key.parent.absolute())
