"""A folder of certificates: its files, the facts in a certificate, and TLS contexts of the party whose folder it is:
TLS 1.3, a certificate on both sides, and no revoked one.

The list of revoked certificates (a CRL, RFC 5280) lies beside the CA's certificate, and is good for as long as the CA:
one that ended before would shut everybody out on a day nobody thought of. So an old list is as good as a new one where
nothing newer is known; a service goes back to no older one (identity.py). Lists of other CAs may end sooner.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import ssl
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ...files import whole_file
from ...protocols.errors import BlindformerError
from ..transport.tls import ROLE_URI

CA, CA_KEY = "ca.pem", "ca.key"
REVOKED = "revoked.pem"  # the list of revoked certificates
REPLACED = "replaced.pem"  # certificates that were replaced and have not expired: they can be revoked, too
_OTHERS = (CA, REVOKED, REPLACED)
CLOCK_SKEW = datetime.timedelta(hours=1)  # what is signed is good from an hour ago, for machines whose clocks differ
ELSEWHERE = "choose a folder that you may write to"
PASSPHRASE_LEAST = 16  # bytes: PKCS #8 slows down little (2048 rounds of PBKDF2) who guesses at a copy of the key
_AGAIN = "copy the newest one here, from whoever runs the CA"


class CertificateError(BlindformerError):
    """A certificate, key or list of this party is missing, expired, revoked, of another role, or not from this CA."""


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


def load_authority(folder: Path, passphrase: bytes | None = None) -> Authority:
    """The CA with its key. `passphrase`: of a key that is encrypted. Errors: `CertificateError`."""
    file, certificate = folder / CA_KEY, load_certificate(folder / CA)
    if not file.is_file():
        raise CertificateError(
            f"{file} is missing; run this in the CA's folder, or make all certificates anew in a new folder"
        )
    check_private(file)
    content = file.read_bytes()
    encrypted = b"ENCRYPTED" in content
    if encrypted and passphrase is None:
        raise CertificateError(f"{file} is encrypted; give the file of its passphrase: --passphrase-file FILE")
    try:
        key = serialization.load_pem_private_key(content, passphrase if encrypted else None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        what = "cannot be decrypted with this passphrase" if encrypted else "is not a key of `blindformer certs`"
        raise CertificateError(f"{file} {what}; give the right one, or copy the key back from where it was made")
    if key.public_key() != certificate.public_key():
        raise CertificateError(f"{file} is not the key of {folder / CA}; copy both from one folder")
    return Authority(certificate, key)


def read_passphrase(file: Path) -> bytes:
    """The first line of `file`. Errors: `CertificateError` if others can read it, or it is too short."""
    try:
        check_private(file)
        first = file.read_bytes().partition(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise CertificateError(f"{file}: cannot be read ({error.strerror}); name the file of the passphrase") from None
    if len(first) < PASSPHRASE_LEAST:
        what = f"holds a passphrase of {len(first)} characters"
        raise CertificateError(f"{file} {what}; write one of {PASSPHRASE_LEAST} or more in its first line")
    return first


def check_private(file: Path) -> None:
    """Errors: `CertificateError` if other users of this machine can read `file`."""
    if os.name == "posix" and file.is_file() and file.stat().st_mode & 0o077:
        raise CertificateError(f"{file} can be read by other users; run: chmod 600 {file}")


def party_folder(folder: Path, role: str, name: str | None) -> Path:
    """The folder of a party's own files: a party whose name is not its role has a folder of that name."""
    return folder if name in (None, role) else folder / name


def hand_out(folder: Path, names: Iterable[str]) -> None:
    """Copy these parties' files in `folder` to their own folders in it: ca.pem, the certificate and the list of revoked
    ones, never the CA's key. Errors: `CertificateError`, OSError."""
    authority = load_certificate(folder / CA)
    for name in names:
        certificate = load_certificate(folder / f"{name}.pem")
        role, own = role_in(certificate), folder / name
        if role in (None, name) or not own.is_dir() or not issued_by(certificate, authority):
            continue
        for here, there in ((CA, CA), (f"{name}.pem", f"{role}.pem"), (REVOKED, REVOKED)):
            if (folder / here).is_file():
                write(own / there, (folder / here).read_bytes())
            else:
                (own / there).unlink(missing_ok=True)


def own_files(folder: Path) -> Iterator[tuple[Path, x509.Certificate]]:
    """The certificates in `folder` by file, without the CA's. Errors: `CertificateError`."""
    for file in sorted(folder.glob("*.pem")):
        if file.name not in _OTHERS:
            yield file, load_certificate(file)


def replaced(folder: Path) -> list[x509.Certificate]:
    """The certificates that were replaced and have not expired. Errors: `CertificateError`."""
    file = folder / REPLACED
    if not file.is_file():
        return []
    try:
        certificates = x509.load_pem_x509_certificates(file.read_bytes())
    except ValueError:
        raise CertificateError(f"{file} is damaged; remove it, or copy it back: it names what can be revoked") from None
    return [certificate for certificate in certificates if certificate.not_valid_after_utc > now()]


def replace(file: Path, certificate: x509.Certificate) -> None:
    """Write a certificate. The one that was there, of the same CA, is kept among the replaced ones."""
    before = replaced(file.parent)
    with contextlib.suppress(CertificateError):  # nothing there, or nothing that anybody could have used
        before.append(load_certificate(file))
    kept = [old for old in before if old.not_valid_after_utc > now() and old.issuer == certificate.issuer]
    if kept:
        write(file.parent / REPLACED, b"".join(map(pem, kept)))
    write(file, pem(certificate))


def state_of(folder: Path, name: str) -> tuple[tuple[int, ...], ...]:
    """The state of all files that contexts of party `name` are made from: it differs when one of them has changed."""
    files = (folder / CA, folder / REVOKED, folder / f"{name}.pem", folder / f"{name}.key")
    return tuple(_state(file) for file in files)


def _state(file: Path) -> tuple[int, ...]:
    try:
        status = file.stat()
    except OSError:
        return ()
    return status.st_mtime_ns, status.st_size, status.st_ino


def issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
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
    """Errors: `CertificateError` for a word that cannot name a party's files."""
    if not is_word(word) or f"{word}.pem" in _OTHERS:
        raise CertificateError(f"{word!r} cannot name a party; use a short lower-case word such as server")


def is_word(text: str) -> bool:
    return re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", text) is not None


def write(file: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file that at no moment is readable by more users, or less complete, than it should be."""
    with whole_file(file, mode) as stream:
        stream.write(content)


def pem(signed: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    return signed.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A key in PEM form, encrypted if there is a passphrase."""
    hidden = serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _names_in(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


# --- TLS contexts, and the list of revoked certificates ---


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
    authority, file, key = folder / CA, folder / f"{role}.pem", key_of(folder, role)
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


def key_of(folder: Path, role: str) -> Path:
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
