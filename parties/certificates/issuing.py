"""Certificates: one CA and one certificate for each role, made, added, renewed, revoked and described.

Good enough for real use between parties that trust whoever ran this; a company with its own CA only has to put the
URI `blindformer:role:<role>` in the subject alternative names.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ...protocols.errors import writing
from ..transport.tls import ROLE_URI
from . import EXPIRY_DAYS
from .tls_folder import (
    CA,
    CA_KEY,
    CLOCK_SKEW,
    ELSEWHERE,
    REPLACED,
    REVOKED,
    Authority,
    CertificateError,
    check_word,
    fingerprint,
    hand_out,
    hosts_in,
    is_listed,
    is_word,
    issued_by,
    key_pem,
    list_number,
    load_authority,
    load_certificate,
    now,
    own_files,
    party_folder,
    pem,
    read_revoked,
    replace,
    replaced,
    role_in,
    write,
)

ROLES = ("server", "client", "dealer", "helper")
HOSTS = ("localhost", "127.0.0.1", "::1")
MOST_DAYS = 36500  # a century: dates end in the year 9999
Extensions = list[tuple[x509.ExtensionType, bool]]  # and whether each is critical
CA_DAYS = 3650  # of a CA whose key is kept, so that it can renew what it signed
FINGERPRINT_LEAST = 8  # hex digits, as in logs

# A client only dials and a dealer only listens; servers and helpers do both. OpenSSL holds a certificate to this before
# we look at its role.
_USAGES = {"client": [ExtendedKeyUsageOID.CLIENT_AUTH], "dealer": [ExtendedKeyUsageOID.SERVER_AUTH]}
_BOTH = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]


@dataclass(frozen=True)
class Described:
    """One row of `describe`. `fingerprint`: SHA-256, hex."""

    role: str
    file: Path
    hosts: tuple[str, ...]
    expires: datetime.datetime
    fingerprint: str
    revoked: bool = False

    @property
    def days_left(self) -> float:
        """Negative when it has expired."""
        return (self.expires - now()).total_seconds() / 86400

    @property
    def expired(self) -> bool:
        return self.days_left <= 0


def make_certificates(
    folder: str | Path,
    roles: Sequence[str] = ROLES,
    days: float = 30,
    hosts: Sequence[str] = HOSTS,
    *,
    keep_ca_key: bool = False,
    passphrase: bytes | None = None,
    force: bool = False,
) -> list[Path]:
    """Write `ca.pem`, and `<role>.pem` with `<role>.key` for each role; return the files written.

    The CA's key is forgotten unless `keep_ca_key`: without it nobody, this machine included, can add a party later.
    A CA whose key is kept is good for CA_DAYS, another one for `days`. `passphrase`: what the key is encrypted with.

    Errors: `CertificateError` if a file is already there and `force` is not set, a role is not a plain word, or the
    folder cannot be written.
    """
    folder = Path(folder)
    names = [CA, *([CA_KEY] if keep_ca_key else [])]
    for role in roles:
        check_word(role)
        names += [f"{role}.pem", f"{role}.key"]
    _check_promises(days, hosts)  # before anything is replaced
    if not force:
        _refuse_overwriting(folder, names)
    authority = _make_authority(max(days, CA_DAYS if keep_ca_key else 1))
    with writing(folder, ELSEWHERE, CertificateError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name in (CA_KEY, REVOKED, REPLACED):  # with force: of the former CA
            (folder / name).unlink(missing_ok=True)
        write(folder / CA, pem(authority.certificate))
        if keep_ca_key:
            write(folder / CA_KEY, key_pem(authority.key, passphrase), mode=0o600)
        for role in roles:
            _issue(folder, role, role, days=days, hosts=hosts, authority=authority)
    return [folder / name for name in names]


def add_certificate(
    folder: str | Path,
    role: str,
    days: float | None = None,
    hosts: Sequence[str] = HOSTS,
    *,
    name: str | None = None,
    passphrase: bytes | None = None,
    force: bool = False,
) -> list[Path]:
    """Add a certificate of the CA in `folder`, as `<role>.pem` and `<role>.key`; return the files that the party needs.
    With a `name` that is not its role they lie in a folder of that name, with all else that the party needs, and
    `folder` itself gets `<name>.pem`, which renewals and revocations go by.

    days         how long it is good; None: as long as that of its role, or as another one of the folder, or the CA
    passphrase   of the CA's key

    Errors: `CertificateError` if the CA's key was not kept, it expires before, a file is there and `force` is not set,
    or the folder cannot be written.
    """
    folder = Path(folder)
    name = name or role
    check_word(role)
    check_word(name)
    _check_promises(days or 0, hosts)
    own = party_folder(folder, role, name)
    if not force:
        _refuse_overwriting(folder, [f"{name}.pem"])
        _refuse_overwriting(own, [f"{role}.pem", f"{role}.key"])
    authority = load_authority(folder, passphrase)
    if days is None:
        signed = {file.stem: one for file, one in own_files(folder) if issued_by(one, authority.certificate)}
        of_role = signed.get(role, next(iter(signed.values()), authority.certificate))
        left = authority.certificate.not_valid_after_utc - now()
        days = min(_lasts(of_role), left.total_seconds() / 86400 - 0.001)
    _check_end(folder, authority, days)
    with writing(folder, ELSEWHERE, CertificateError):
        own.mkdir(exist_ok=True, mode=0o700)
        _issue(folder, name, role, days=days, hosts=hosts, authority=authority)
        hand_out(folder, [name])
    needed = (own / file for file in (CA, f"{role}.pem", f"{role}.key", REVOKED))
    return [file for file in needed if file.is_file()]


def renew_certificates(
    folder: str | Path,
    days: float | None = None,
    within: float = EXPIRY_DAYS,
    names: Sequence[str] = (),
    passphrase: bytes | None = None,
) -> list[Described]:
    """Renew the certificates that end `within` days (only those of `names`, if there are any), with the same name,
    role, hosts and key: no key has to travel or to be here. Returns the new ones. Revoked ones are left as they are.

    days         how long they are good from now; None: as long as they were
    passphrase   of the CA's key

    Errors: `CertificateError` if the CA's key was not kept, it ends before, `names` has one that is not there or was
    revoked, or the folder cannot be written. Nothing is renewed then.
    """
    folder = Path(folder)
    authority = load_authority(folder, passphrase)
    known = {row.file.stem: row for row in describe(folder)[1:]}
    for name in names:
        if name not in known or known[name].revoked:
            what = "was revoked" if name in known else f"is no certificate in {folder}"
            raise CertificateError(f"{name}: {what}; add it with `blindformer certs add`")
    renewed: dict[Path, x509.Certificate] = {}
    for name, row in known.items():
        before = load_certificate(row.file)
        ours = issued_by(before, authority.certificate) and not row.revoked
        if ours and row.days_left < within and (not names or name in names):
            lasts = _lasts(before) if days is None else days
            _check_promises(lasts, ())
            _check_end(folder, authority, lasts)
            renewed[row.file] = _again(before, lasts, authority)
    with writing(folder, ELSEWHERE, CertificateError):
        for file, certificate in renewed.items():
            replace(file, certificate)
        hand_out(folder, [file.stem for file in renewed])
    return [row for row in describe(folder) if row.file in renewed]


def revoke(folder: str | Path, which: str, passphrase: bytes | None = None) -> list[x509.Certificate]:
    """Add certificates to the list of revoked ones in `folder`, where the CA's key is; return those that are new in it.

    which        a name: all certificates of that name, those that were replaced among them; a certificate's file, or
                 (the first digits of) its fingerprint: all of the same key
    passphrase   of the CA's key

    Errors: `CertificateError` if there is no such certificate of this CA, no key of the CA, or the list in the folder
    is not from this CA.
    """
    folder = Path(folder)
    authority, before = load_authority(folder, passphrase), read_revoked(folder)
    chosen = {certificate.serial_number: certificate for certificate in _choose(folder, which, authority)}
    fresh = [certificate for serial, certificate in chosen.items() if not is_listed(before, serial)]
    if fresh:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(authority.certificate.subject)
            .last_update(now() - CLOCK_SKEW)
            .next_update(authority.certificate.not_valid_after_utc)
            .add_extension(x509.CRLNumber(1 + (0 if before is None else list_number(before))), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), critical=False
            )
        )
        for entry in before or ():
            builder = builder.add_revoked_certificate(entry)
        for certificate in fresh:
            entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number).revocation_date(now())
            builder = builder.add_revoked_certificate(entry.build())
        with writing(folder, ELSEWHERE, CertificateError):
            write(folder / REVOKED, pem(builder.sign(authority.key, hashes.SHA256())))
            hand_out(folder, [file.stem for file, _ in own_files(folder)])
    return fresh


def describe(folder: str | Path) -> list[Described]:
    """The certificates in `folder`, the CA first.

    Errors: `CertificateError` if there is no CA, or a list of revoked ones that is not its own.
    """
    folder = Path(folder)
    authority, revoked = load_certificate(folder / CA), read_revoked(folder)
    rows = [Described("ca", folder / CA, (), authority.not_valid_after_utc, fingerprint(authority))]
    for file, certificate in own_files(folder):
        role, hosts = role_in(certificate) or "none", hosts_in(certificate)
        ends, serial = certificate.not_valid_after_utc, certificate.serial_number
        rows.append(Described(role, file, hosts, ends, fingerprint(certificate), is_listed(revoked, serial)))
    return rows


def _choose(folder: Path, which: str, authority: Authority) -> list[x509.Certificate]:
    known = [*(certificate for _, certificate in own_files(folder)), *replaced(folder)]
    known = [certificate for certificate in known if issued_by(certificate, authority.certificate)]
    if is_word(which) and (folder / f"{which}.pem").is_file():
        subject = _of_this_ca(folder / f"{which}.pem", authority).subject
        return [certificate for certificate in known if certificate.subject == subject]
    if Path(which).is_file():
        chosen = [_of_this_ca(Path(which), authority)]
    else:
        digits = which.replace(":", "").lower()
        plain = re.fullmatch(rf"[0-9a-f]{{{FINGERPRINT_LEAST},64}}", digits)
        chosen = [one for one in known if plain and fingerprint(one).startswith(digits)]
    if len(set(chosen)) != 1:
        what = "fits several certificates" if chosen else f"is no certificate known in {folder}"
        raise CertificateError(
            f"{which}: {what}; give a name, a file, or at least {FINGERPRINT_LEAST} digits of a fingerprint "
            f"(blindformer certs show {folder})"
        )
    key = chosen[0].public_key()
    return [*chosen, *(certificate for certificate in known if certificate.public_key() == key)]


def _of_this_ca(file: Path, authority: Authority) -> x509.Certificate:
    certificate = load_certificate(file)
    if certificate == authority.certificate or not issued_by(certificate, authority.certificate):
        raise CertificateError(f"{file} is no certificate that the CA of this folder has signed; name one of its own")
    return certificate


def _make_authority(days: float) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    # Two CAs must never share a name, or a peer of another CA is told "bad signature" instead of "another CA".
    subject = _named(f"Blindformer CA {x509.random_serial_number():x}")
    extensions: Extensions = [
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_key_usage(signs_certificates=True), True),
    ]
    return Authority(_signed(key, subject, subject, key.public_key(), days, extensions), key)


def _issue(folder: Path, name: str, role: str, *, days: float, hosts: Sequence[str], authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    names = [x509.UniformResourceIdentifier(ROLE_URI + role), *map(_general_name, hosts)]
    extensions: Extensions = [
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage(_USAGES.get(role, _BOTH)), False),
        (x509.SubjectAlternativeName(names), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key()), False),
    ]
    issuer, subject = authority.certificate.subject, _named(f"blindformer {name}")
    replace(folder / f"{name}.pem", _signed(authority.key, issuer, subject, key.public_key(), days, extensions))
    write(party_folder(folder, role, name) / f"{role}.key", key_pem(key), mode=0o600)


def _lasts(certificate: x509.Certificate) -> float:
    """Days that it was made for."""
    span = certificate.not_valid_after_utc - certificate.not_valid_before_utc - CLOCK_SKEW
    return span.total_seconds() / 86400


def _again(before: x509.Certificate, days: float, authority: Authority) -> x509.Certificate:
    """The same certificate, good for `days` from now."""
    extensions = [(extension.value, extension.critical) for extension in before.extensions]
    return _signed(authority.key, before.issuer, before.subject, before.public_key(), days, extensions)


def _signed(
    signer: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    subject: x509.Name,
    key: CertificatePublicKeyTypes,
    days: float,
    extensions: Extensions,
) -> x509.Certificate:
    until = now() + datetime.timedelta(days=days)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now(), until) - CLOCK_SKEW)
        .not_valid_after(until)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(signer, hashes.SHA256())


def _named(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _key_usage(signs_certificates: bool) -> x509.KeyUsage:
    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
              "decipher_only")  # fmt: skip
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        **dict.fromkeys(unused, False),
    )


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not re.fullmatch(r"[A-Za-z0-9*]([A-Za-z0-9._-]*[A-Za-z0-9])?", host):
            raise CertificateError(
                f"{host!r} is neither a host's name in ASCII nor an address; give one such as server.example.org"
            ) from None
        return x509.DNSName(host)


def _check_promises(days: float, hosts: Sequence[str]) -> None:
    if days > MOST_DAYS:
        raise CertificateError(f"{days:g} days are too many for a certificate; give at most {MOST_DAYS}")
    for host in hosts:
        _general_name(host)


def _check_end(folder: Path, authority: Authority, days: float) -> None:
    ends = authority.certificate.not_valid_after_utc
    if now() + datetime.timedelta(days=days) > ends:
        what = f"{folder / CA} is good until {ends:%Y-%m-%d} only"
        raise CertificateError(f"{what}; ask for fewer days, or a new CA")


def _refuse_overwriting(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if (folder / name).exists():
            raise CertificateError(
                f"{folder / name} is already there; choose another folder, or replace it with --force"
            )
