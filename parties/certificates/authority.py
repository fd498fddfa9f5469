"""The files of a folder of certificates: read and written, and what a certificate says of its party."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...files import whole_file
from ...protocols.errors import BlindformerError
from ..transport.tls import ROLE_URI

CA, CA_KEY = "ca.pem", "ca.key"
REVOKED = "revoked.pem"  # the list of revoked certificates (revocation.py)
REPLACED = "replaced.pem"  # certificates that others stand in for, and that are good still: they can be revoked, too
_OTHERS = (CA, REVOKED, REPLACED)
CLOCK_SKEW = datetime.timedelta(hours=1)  # what is signed is good from an hour ago, for machines whose clocks differ
ELSEWHERE = "choose a folder that you may write to"


class CertificateError(BlindformerError):
    """A certificate, key or list of this side is missing, expired, revoked, of another role, or not from this CA."""


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def load_certificate(file: Path) -> x509.Certificate:
    """Errors: `CertificateError`."""
    if not file.is_file():
        raise CertificateError(f"{file} is missing; make certificates with `blindformer certs`, or name their folder")
    try:
        return x509.load_pem_x509_certificate(file.read_bytes())
    except ValueError:
        raise CertificateError(f"{file} is not a certificate in PEM form; make certificates again") from None


def load_authority(folder: Path) -> Authority:
    """The CA with its key. Errors: `CertificateError`."""
    file, certificate = folder / CA_KEY, load_certificate(folder / CA)
    if not file.is_file():
        raise CertificateError(
            f"{file} is missing, without which nothing can be signed; copy it back, or make all certificates anew: "
            f"blindformer certs make {folder} --keep-ca-key --force"
        )
    try:
        key = serialization.load_pem_private_key(file.read_bytes(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(f"{file} is not a key that `blindformer certs` has made; copy that one back")
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"{file} is not the key of {folder / CA}; copy both from one folder")
    return Authority(certificate, key)


def own_files(folder: Path) -> Iterator[tuple[Path, x509.Certificate]]:
    """The certificates in `folder` by file, without the CA's. Errors: `CertificateError`."""
    for file in sorted(folder.glob("*.pem")):
        if file.name not in _OTHERS:
            yield file, load_certificate(file)


def replaced(folder: Path) -> list[x509.Certificate]:
    """Those that others stand in for, as far as they have not expired. Errors: `CertificateError`."""
    file = folder / REPLACED
    if not file.is_file():
        return []
    try:
        found = x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError:
        raise CertificateError(f"{file} is damaged; remove it, or copy it back: it names what can be revoked") from None
    return [certificate for certificate in found if certificate.not_valid_after_utc > now()]


def replace(file: Path, certificate: x509.Certificate) -> None:
    """Write a certificate; the one that was there, of the same CA, is kept among the replaced ones."""
    before = replaced(file.parent)
    with contextlib.suppress(CertificateError):  # nothing there, or nothing that anybody could have used
        before.append(load_certificate(file))
    kept = [old for old in before if old.not_valid_after_utc > now() and old.issuer == certificate.issuer]
    if kept:
        write(file.parent / REPLACED, b"".join(map(pem, kept)))
    write(file, pem(certificate))


def state_of(folder: Path, name: str) -> tuple[tuple[int, ...], ...]:
    """Of all files that contexts of party `name` are made from: another one when one of them has changed."""
    files = (folder / CA, folder / REVOKED, folder / f"{name}.pem", folder / f"{name}.key")
    return tuple(_state(file) for file in files)


def _state(file: Path) -> tuple[int, ...]:
    try:
        found = file.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the certificate, hex: what logs show the first digits of."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def role_in(certificate: x509.Certificate) -> str | None:
    names = _names_in(certificate)
    uris = names.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    roles = [uri.removeprefix(ROLE_URI) for uri in uris if uri.startswith(ROLE_URI)]
    return roles[0] if len(roles) == 1 else None


def hosts_in(certificate: x509.Certificate) -> tuple[str, ...]:
    names = _names_in(certificate)
    if names is None:
        return ()
    addresses = (str(address) for address in names.get_values_for_type(x509.IPAddress))
    return (*names.get_values_for_type(x509.DNSName), *addresses)


def check_word(word: str) -> None:
    """Errors: `CertificateError` for what can name no party's files."""
    if not is_word(word) or f"{word}.pem" in _OTHERS:
        raise CertificateError(f"{word!r} cannot name a party; use a short lower-case word such as server")


def is_word(text: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", text) is not None


def write(file: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file that is never, not even for a moment, more open or less complete than it should be."""
    with whole_file(file, mode) as stream:
        stream.write(content)


def pem(made: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    return made.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _names_in(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
