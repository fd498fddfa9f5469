"""`blindformer certs`: make a CA and its certificates, add others, and show what a folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ..certificates import EXPIRY_DAYS
from . import options
from .commands import CheckedCommand, example
from .output import print_result, table

app = typer.Typer(help="Certificates for all parties, of a CA of your own.", no_args_is_help=True)
FIELDS = ("role", "file", "hosts", "expires", "days_left", "expired", "fingerprint", "revoked")
SHOWN = 8  # hex digits of a fingerprint, as in logs
Folder = Annotated[Path, Argument(help="The folder of the certificates.")]
Passphrase = Annotated[
    Path | None,
    Option(help="File with the passphrase of the CA's key in its first line (default: not encrypted)."),
]
Host = Annotated[
    list[str] | None,
    Option(help="A host name or address of a party, besides this machine's (default: none). May be repeated."),
]
Days = Annotated[float, Option(min=0.01, help="Days that the certificates are good.")]
Force = Annotated[bool, Option("--force", help="Replace the certificates that are there.")]
WithKey = Annotated[Path, Argument(help="The folder of the certificates, with the CA's key.")]


@app.command(cls=CheckedCommand, epilog=example("certs make certs --host server.example.org"))
def make(
    folder: Folder = Path("certs"),
    days: Days = 30,
    host: Host = None,
    party: Annotated[
        list[str] | None,
        Option(help="A party of protocol crypten, in place of the roles (default: none). May be repeated."),
    ] = None,
    keep_ca_key: Annotated[
        bool,
        Option(
            "--keep-ca-key/--drop-ca-key",
            help="Keep the CA's key, to add, renew and revoke certificates.",
        ),
    ] = True,
    passphrase_file: Annotated[
        Path | None,
        Option(help="File with the passphrase of the CA's key in its first line (default: not encrypted)."),
    ] = None,
    force: Force = False,
    form: options.Form = "text",
) -> None:
    """Make a CA and a certificate for each role or party. Only you can read the keys."""
    from ..certificates.issuing import HOSTS, ROLES, make_certificates
    from ..certificates.tls_folder import CA_KEY, CertificateError

    if passphrase_file and not keep_ca_key:
        raise CertificateError("--passphrase-file encrypts the CA's key; leave it out, or --drop-ca-key")
    roles = tuple(dict.fromkeys([*party, "dealer"])) if party else ROLES
    hosts = tuple(dict.fromkeys([*HOSTS, *(host or ())]))
    passphrase = _read(passphrase_file)
    files = make_certificates(
        folder, roles, days=days, hosts=hosts, keep_ca_key=keep_ca_key, passphrase=passphrase, force=force
    )
    advice = [f"{len(files)} files in {folder}: give each of {', '.join(roles)} ca.pem, its .pem and its .key only"]
    if keep_ca_key:
        advice.append(f"{folder / CA_KEY} is the CA's key: keep it offline, whoever has it can pass for any party")
        advice.append("certs add, renew and revoke need it; --drop-ca-key keeps none")
    else:
        advice.append("the CA's key is dropped: nobody can add, renew or revoke; certs make without --drop-ca-key can")
    print_result(form, {"folder": folder, "files": files, "hosts": hosts}, *advice)


@app.command(cls=CheckedCommand, epilog=example("certs add certs client --name alice"))
def add(
    folder: WithKey,
    role: Annotated[
        str, Argument(help="The role, server, client, dealer or helper; with --party the name of a party.")
    ],
    name: Annotated[str | None, Option(help="The name of its files and of its folder (default: the role).")] = None,
    party: Annotated[bool, Option("--party", help="The role is the name of a party of protocol crypten.")] = False,
    days: Annotated[
        float | None,
        Option(min=0.01, help="Days that the certificate is good (default: as long as that of its role)."),
    ] = None,
    host: Host = None,
    passphrase_file: Passphrase = None,
    force: Force = False,
    form: options.Form = "text",
) -> None:
    """Add a certificate: another client, or a new key. Needs the CA's key."""
    from ..certificates.issuing import HOSTS, ROLES, add_certificate
    from ..certificates.tls_folder import CertificateError

    if role not in ROLES and not party:
        raise CertificateError(f"{role}: is no party; choose one of {', '.join(ROLES)}, or say --party")
    hosts = tuple(dict.fromkeys([*HOSTS, *(host or ())]))
    passphrase = _read(passphrase_file)
    files = add_certificate(folder, role, days=days, hosts=hosts, name=name, passphrase=passphrase, force=force)
    own, names = files[0].parent, ", ".join(file.name for file in files)
    advice = [f"{names} in {own}: give the {role} these files, and nobody else its key"]
    if own != folder:
        advice.append(f"the folder can be used as it is: --certs {own}")
    print_result(form, {"folder": own, "role": role, "files": files, "hosts": hosts}, *advice)


@app.command(cls=CheckedCommand, epilog=example("certs renew certs"))
def renew(
    folder: WithKey,
    name: Annotated[list[str] | None, Option(help="The name of one to renew (default: all). May be repeated.")] = None,
    within: Annotated[float, Option(min=0, help="Renew what ends in so many days.")] = EXPIRY_DAYS,
    days: Annotated[
        float | None, Option(min=0.01, help="Days that the new ones are good (default: as long as the old ones were).")
    ] = None,
    passphrase_file: Passphrase = None,
    form: options.Form = "text",
) -> None:
    """Renew certificates that end soon. Names, roles, hosts and keys stay, so only certificates must be copied."""
    from ..certificates.issuing import renew_certificates

    renewed = renew_certificates(folder, days, within, name or (), _read(passphrase_file))
    rows = [{"file": row.file, "expires": row.expires, "days_left": row.days_left} for row in renewed]
    advice = [f"nothing in {folder} ends within {within:g} days"] if not renewed else []
    for row in renewed:
        there = "" if row.file.stem == row.role else f" as {row.role}.pem"
        advice.append(f"{row.file} is good until {row.expires:%Y-%m-%d}: copy it to its party{there}; its key stays")
    print_result(form, {"folder": folder, "renewed": rows}, *advice)


@app.command(cls=CheckedCommand, epilog=example("certs revoke certs alice"))
def revoke(
    folder: WithKey,
    which: Annotated[
        str, Argument(help="A name, a certificate's file, or the first digits of its fingerprint.", metavar="WHICH")
    ],
    passphrase_file: Passphrase = None,
    form: options.Form = "text",
) -> None:
    """Revoke a certificate: write it into the CA's list, which every party's folder needs."""
    from ..certificates.issuing import revoke
    from ..certificates.tls_folder import REVOKED, fingerprint

    revoked = [fingerprint(certificate) for certificate in revoke(folder, which, _read(passphrase_file))]
    file, advice = folder / REVOKED, f"{which} was revoked before: {folder / REVOKED} holds it"
    if revoked:
        fingerprints = ", ".join(digits[:SHOWN] for digits in revoked)
        advice = f"{which} ({fingerprints}) is revoked: copy {file} to the folders of all parties"
        advice += "; services take it by themselves"
    print_result(form, {"file": file, "revoked": revoked}, advice)


@app.command(cls=CheckedCommand, epilog=example("certs show certs"))
def show(folder: Folder = Path("certs"), form: options.Form = "text") -> None:
    """Show roles, hosts, dates and fingerprints of the certificates in a folder, and which are revoked."""
    from ..certificates.issuing import describe

    certificates = describe(folder)
    values = [{name: getattr(row, name) for name in FIELDS} for row in certificates]
    rows = [
        (
            row.role,
            row.file,
            ", ".join(row.hosts),
            f"{row.expires:%Y-%m-%d %H:%M} UTC",
            "revoked" if row.revoked else "expired" if row.expired else f"{row.days_left:.0f}",
            row.fingerprint[:SHOWN],
        )
        for row in certificates
    ]
    listing = table("role", "file", "hosts", "good until", "days", "fingerprint", right=(4,), rows=rows)
    print_result(form, {"folder": folder, "certificates": values}, listing)


def _read(passphrase_file: Path | None) -> bytes | None:
    from ..certificates.tls_folder import read_passphrase

    return None if passphrase_file is None else read_passphrase(passphrase_file)
