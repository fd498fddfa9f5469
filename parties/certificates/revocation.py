"""The list of revoked certificates (a CRL, RFC 5280) that lies beside a CA: how it is written, and what it must be.

Contexts of a folder that holds one refuse who is in it (contexts.py). The list is good for as long as its CA: one
that lapsed before would shut everybody out on a day nobody thought of. So an old list is as good as a new one where
nothing newer is known; a service goes back to no older one (identity.py). Lists of other CAs may end sooner.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ...protocols.errors import writing
from .authority import (
    CA,
    CLOCK_SKEW,
    ELSEWHERE,
    REVOKED,
    Authority,
    CertificateError,
    fingerprint,
    hand_out,
    is_word,
    issued_by,
    load_authority,
    load_certificate,
    now,
    own_files,
    pem,
    replaced,
    write,
)

FINGERPRINT_LEAST = 8  # hex digits, as in logs
_AGAIN = "copy the newest one here, from whoever runs the CA"


@dataclass(frozen=True)
class RevokedList:
    """`number`: counts up with each list of a CA. `expires`: none is believed after that."""

    number: int
    expires: datetime.datetime
    serials: frozenset[int]
    issuer: str


def read_revoked(folder: Path) -> RevokedList | None:
    """The list in `folder`; None if there is none.

    Errors: `CertificateError` if it cannot be read, ended, or is not from the CA beside it.
    """
    found = _load(folder)
    if found is None:
        return None
    authority = load_certificate(folder / CA)
    serials = frozenset(revoked.serial_number for revoked in found)
    ends = found.next_update_utc or authority.not_valid_after_utc
    return RevokedList(_number(found), ends, serials, authority.issuer.rfc4514_string())


def revoke(folder: str | Path, which: str, passphrase: bytes | None = None) -> list[x509.Certificate]:
    """Add to the list of `folder`, where the CA's key is, and return what was not in it before.

    which        a name: all certificates of that name, those that were replaced among them; a certificate's file, or
                 (the first digits of) its fingerprint: all of the same key
    passphrase   of the CA's key

    Errors: `CertificateError` if there is no such certificate of this CA, no key of the CA, or the list in the folder
    is none of this CA.
    """
    folder = Path(folder)
    authority, before = load_authority(folder, passphrase), _load(folder)
    known = [] if before is None else [revoked.serial_number for revoked in before]
    chosen = {found.serial_number: found for found in _choose(folder, which, authority)}
    fresh = [certificate for serial, certificate in chosen.items() if serial not in known]
    if fresh:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.certificate.subject)
            .last_update(now() - CLOCK_SKEW)
            .next_update(authority.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(1 + (0 if before is None else _number(before))), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
            )
        )
        for revoked in before or ():
            builder = builder.add_revoked_certificate(revoked)
        for certificate in fresh:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now())
            builder = builder.add_revoked_certificate(entry.build())
        with writing(folder, ELSEWHERE, CertificateError):
            write(folder / REVOKED, pem(builder.sign(authority.key, hashes.SHA256())))
            hand_out(folder, [file.stem for file, _ in own_files(folder)])
    return fresh


def _load(folder: Path) -> x509.CertificateRevocationList | None:
    file, authority = folder / REVOKED, folder / CA
    if not file.is_file():
        return None
    content = file.read_bytes()
    try:
        found = x509.load_pem_x509_crl(content)
        entries = sum(1 for _ in found)
    except ValueError:
        found, entries = None, 0
    # OpenSSL reads all that is in the file, and would trust a certificate in it as another CA.
    if found is None or entries != len(found) or content.count(b"-----BEGIN") != 1:
        raise CertificateError(f"{file} is not one list of revoked certificates in PEM form; {_AGAIN}")
    issuer = load_certificate(authority)
    if found.issuer != issuer.subject or not found.is_signature_valid(issuer.public_key()):  # type: ignore[arg-type]
        raise CertificateError(f"{file} is not from the CA in {authority}; copy its own here, or remove this one")
    if found.next_update_utc is not None and found.next_update_utc <= now():
        raise CertificateError(f"{file} ended on {found.next_update_utc:%Y-%m-%d}; {_AGAIN}")
    if found.last_update_utc > now():
        what = f"is good from {found.last_update_utc:%Y-%m-%d %H:%M} UTC"
        raise CertificateError(f"{file} {what}; compare the clocks of this machine and the CA's")
    return found


def _number(found: x509.CertificateRevocationList) -> int:
    try:
        return found.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except x509.ExtensionNotFound:
        return 0


def _choose(folder: Path, which: str, authority: Authority) -> list[x509.Certificate]:
    known = [*(found for _, found in own_files(folder)), *replaced(folder)]
    known = [certificate for certificate in known if issued_by(certificate, authority.certificate)]
    if is_word(which) and (folder / f"{which}.pem").is_file():
        subject = _of_this_ca(folder / f"{which}.pem", authority).subject
        return [certificate for certificate in known if certificate.subject == subject]
    if Path(which).is_file():
        chosen = [_of_this_ca(Path(which), authority)]
    else:
        digits = which.replace(":", "").lower()
        plain = re.fullmatch(rf"[0-9a-f]{{{FINGERPRINT_LEAST},64}}", digits)
        chosen = [found for found in known if plain and fingerprint(found).startswith(digits)]
    if len(set(chosen)) != 1:
        what = "fits several certificates" if chosen else f"is no certificate known in {folder}"
        raise CertificateError(
            f"{which}: {what}; give a name, a file, or the first {FINGERPRINT_LEAST} digits or more of a fingerprint "
            f"(blindformer certs show {folder})"
        )
    return [*chosen, *(found for found in known if found.public_key() == chosen[0].public_key())]


def _of_this_ca(file: Path, authority: Authority) -> x509.Certificate:
    certificate = load_certificate(file)
    if certificate == authority.certificate or not issued_by(certificate, authority.certificate):
        raise CertificateError(f"{file} is no certificate that the CA of this folder has signed; name one of its own")
    return certificate
