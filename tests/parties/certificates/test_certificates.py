"""Making certificates, and the errors of contexts made from them."""

from __future__ import annotations

import datetime
import json
import re
import shutil
import ssl
from pathlib import Path

import pytest
from blindformer.parties.certificates.issuing import ROLES, add_certificate, describe, make_certificates, revoke
from blindformer.parties.certificates.tls_folder import (
    CertificateError,
    client_context,
    fingerprint,
    list_number,
    read_revoked,
    server_context,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization


def test_files_and_their_modes(tmp_path):
    folder = tmp_path / "new" / "folder"
    written = make_certificates(folder)
    names = {"ca.pem", *(f"{role}.{end}" for role in ROLES for end in ("pem", "key"))}
    assert {file.name for file in written} == {file.name for file in folder.iterdir()} == names
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in folder.glob("*.key"))


def test_nothing_is_overwritten_unless_forced(tmp_path):
    make_certificates(tmp_path, keep_ca_key=True)
    before = (tmp_path / "server.pem").read_bytes()
    with pytest.raises(CertificateError, match="already there; choose another folder, or replace it with --force"):
        make_certificates(tmp_path)
    with pytest.raises(CertificateError, match="already there"):
        add_certificate(tmp_path, "client")
    assert (tmp_path / "server.pem").read_bytes() == before
    make_certificates(tmp_path, force=True)
    assert (tmp_path / "server.pem").read_bytes() != before
    assert not (tmp_path / "ca.key").exists()


def test_a_ca_s_key_that_is_missing_open_or_damaged_signs_nothing(tmp_path):
    make_certificates(tmp_path)
    for mode, what in (
        (None, r"ca.key is missing; run this in the CA's folder, (?!.*--force)"),
        (0o640, r"ca.key can be read by other users; run: chmod 600"),
        (0o600, r"ca.key is not a key of"),
    ):
        if mode is not None:
            (tmp_path / "ca.key").write_text("nonsense")
            (tmp_path / "ca.key").chmod(mode)
        with pytest.raises(CertificateError, match=what):
            add_certificate(tmp_path, "client", name="client-2")
    assert not (tmp_path / "client-2").exists()


def test_make_keeps_the_ca_s_key_for_its_owner_alone_and_says_what_it_can_do(call, tmp_path):
    code, printed, errors = call("certs", "make", tmp_path / "c", "--host", "example.org")
    assert (code, errors) == (0, "")
    assert all("example.org" in row.hosts for row in describe(tmp_path / "c")[1:])
    assert (tmp_path / "c" / "ca.key").stat().st_mode & 0o777 == 0o600
    printed = " ".join(printed.split())
    assert "keep it offline, whoever has it can pass for any party" in printed
    assert "certs add, renew and revoke need it; --drop-ca-key keeps none" in printed
    assert call("certs", "make", tmp_path / "d", "--drop-ca-key")[0] == 0
    assert list((tmp_path / "d").glob("ca.key")) == []
    for words in (["renew", "--within", "60"], ["revoke", "client"], ["add", "client", "--name", "alice"]):
        command, *options = words
        assert call("certs", command, tmp_path / "c", *options)[0] == 0


def test_a_ca_s_key_that_is_encrypted_needs_its_passphrase(call, refused, tmp_path):
    def passphrase(name: str, content: bytes, mode: int = 0o600) -> Path:
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(mode)
        return tmp_path / name

    right = passphrase("right", b"correct horse battery staple\n")
    windows = passphrase("windows", b"correct horse battery staple\r\nnot this line")
    folder = tmp_path / "c"
    assert call("certs", "make", folder, "--passphrase-file", right)[0] == 0
    assert b"ENCRYPTED" in (folder / "ca.key").read_bytes()
    wrong = {
        passphrase("wrong", b"wrong horse battery staple\n"): "ca.key cannot be decrypted with this passphrase",
        passphrase("short", b"too short\n" + 80 * b"x"): "short holds a passphrase of 9 characters; write one of 16",
        passphrase("open", right.read_bytes(), 0o644): "open can be read by other users; run: chmod 600",
        tmp_path / "none": "none: cannot be read",
    }
    for command in (["add", folder, "client", "--name", "alice"], ["renew", folder], ["revoke", folder, "client"]):
        assert "is encrypted; give the file of its passphrase: --passphrase-file FILE" in refused("certs", *command)
        for file, what in wrong.items():
            assert what in refused("certs", *command, "--passphrase-file", file)
    assert call("certs", "add", folder, "client", "--name", "alice", "--passphrase-file", right)[0] == 0
    assert call("certs", "renew", folder, "--within", 60, "--passphrase-file", windows)[0] == 0
    assert call("certs", "revoke", folder, "alice", "--passphrase-file", right)[0] == 0
    assert "leave it out" in call("certs", "make", tmp_path / "d", "--drop-ca-key", "--passphrase-file", right)[2]


def test_a_client_with_a_name_gets_a_folder_that_it_can_use_as_it_is(call, tmp_path):
    """All that it needs under the names that it needs, and the CA's key and others' files nowhere."""
    make_certificates(tmp_path, keep_ca_key=True)
    own = tmp_path / "alice"
    code, printed, errors = call("certs", "add", tmp_path, "client", "--name", "alice")
    assert (code, errors) == (0, "")
    assert "--certs" in printed
    assert {file.name for file in own.iterdir()} == {"ca.pem", "client.pem", "client.key"}
    assert {file.stat().st_mode & 0o777 for file in (own, own / "client.key")} == {0o700, 0o600}
    client_context(own, "client")
    assert (tmp_path / "alice.pem").read_bytes() == (own / "client.pem").read_bytes()  # what the CA knows of it
    assert not (tmp_path / "alice.key").exists()
    assert "already there" in call("certs", "add", tmp_path, "client", "--name", "alice")[2]

    call("certs", "renew", tmp_path, "--name", "alice", "--within", 60, "--days", 90)
    assert (tmp_path / "alice.pem").read_bytes() == (own / "client.pem").read_bytes()
    assert describe(own)[1].days_left > 89
    revoke(tmp_path, "helper")
    assert (own / "revoked.pem").read_bytes() == (tmp_path / "revoked.pem").read_bytes()
    add_certificate(tmp_path, "client", name="bob")
    assert (tmp_path / "bob" / "revoked.pem").is_file()

    shutil.move(own, tmp_path.parent / "sent")  # its record stays: it can be renewed, and revoked
    printed = call("certs", "renew", tmp_path, "--name", "alice", "--within", 100)[1]
    assert "as client.pem" in " ".join(printed.split())
    assert len(revoke(tmp_path, "alice")) == 3
    assert not own.exists()


def test_what_a_new_ca_has_not_signed_stays_as_it_is(tmp_path):
    make_certificates(tmp_path, keep_ca_key=True)
    add_certificate(tmp_path, "client", name="alice")
    before = {file: file.read_bytes() for file in (tmp_path / "alice").iterdir()}
    make_certificates(tmp_path, keep_ca_key=True, force=True)
    revoke(tmp_path, "client")
    assert {file: file.read_bytes() for file in (tmp_path / "alice").iterdir()} == before


def test_a_folder_that_cannot_be_written_is_one_line(refused, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "certs", Path("/proc/certs")):
        error = refused("certs", "make", folder)
        assert re.fullmatch(rf"blindformer: {folder}: cannot be written \(.+\); choose a folder .*\n", error)


def test_what_no_certificate_can_promise_replaces_nothing(tmp_path):
    make_certificates(tmp_path)
    before = (tmp_path / "ca.pem").read_bytes()
    with pytest.raises(CertificateError, match="days are too many for a certificate; give at most 36500"):
        make_certificates(tmp_path, days=1e9, force=True)
    for host in ("", "münchen.example", "two words"):
        with pytest.raises(CertificateError, match="is neither a host's name in ASCII nor an address"):
            make_certificates(tmp_path, hosts=["localhost", host], force=True)
    assert (tmp_path / "ca.pem").read_bytes() == before


def test_describe(certificates, tmp_path):
    make_certificates(tmp_path, roles=("server",), days=10, hosts=("model.example", "127.0.0.1"))
    ca, server = describe(tmp_path)
    assert (ca.role, server.role) == ("ca", "server")
    assert server.hosts == ("model.example", "127.0.0.1")
    assert not server.expired
    left = server.expires - datetime.datetime.now(datetime.UTC)
    assert 9.9 < left.total_seconds() / 86400 <= 10
    with pytest.raises(CertificateError, match=r"ca\.pem is missing; make certificates with"):
        describe(tmp_path / "empty")


@pytest.mark.parametrize("make", [server_context, client_context])
def test_contexts_are_strict(certificates, make):
    context = make(certificates, "server")
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname == (make is client_context)


def test_a_ca_whose_key_is_kept_outlives_what_it_signs(tmp_path):
    make_certificates(tmp_path / "kept", days=5, keep_ca_key=True)
    add_certificate(tmp_path / "kept", "client", days=300, name="alice")
    client_context(tmp_path / "kept", "client", "alice")
    with pytest.raises(CertificateError, match="ask for fewer days, or a new CA"):
        add_certificate(tmp_path / "kept", "client", days=4000, name="bob")
    for role, name, days in (("client", "carol", 5), ("server", "second", 5)):
        add_certificate(tmp_path / "kept", role, name=name)  # as long as those that were made
        (row,) = (row for row in describe(tmp_path / "kept") if row.file.stem == name)
        assert 0 < days - row.days_left < 0.01
    make_certificates(tmp_path / "lost", days=5)
    ca, other, *_ = describe(tmp_path / "lost")
    assert abs(ca.expires - other.expires) < datetime.timedelta(minutes=1)


def test_a_key_that_systemd_hands_over_may_have_an_access_list(tmp_path, monkeypatch):
    make_certificates(tmp_path / "c")
    (tmp_path / "c" / "server.key").chmod(0o440)
    with pytest.raises(CertificateError, match="can be read by other users"):
        server_context(tmp_path / "c", "server")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "c"))
    server_context(tmp_path / "c", "server")
    (tmp_path / "handed").mkdir()  # the certificates stay where they change, and the service may not read the key there
    shutil.copy(tmp_path / "c" / "server.key", tmp_path / "handed")
    (tmp_path / "c" / "server.key").write_text("not to be read")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "handed"))
    server_context(tmp_path / "c", "server")


@pytest.mark.parametrize(
    ("spoil", "role", "name", "what"),
    [
        (None, "auditor", None, r"auditor\.pem is missing"),
        (lambda c, _: shutil.copy(c / "client.pem", c / "server.pem"), "server", None, "of client, not of server"),
        (lambda c, _: add_certificate(c, "dealer", days=-2, name="old"), "dealer", "old", "expired on"),
        (lambda c, _: (c / "server.key").chmod(0o644), "server", None, "can be read by other users; run: chmod 600"),
        (lambda c, _: (c / "server.key").unlink(), "server", None, r"server\.key is missing"),
        (lambda c, _: shutil.copy(c / "client.key", c / "server.key"), "server", None, "does not belong to"),
        (lambda c, _: (c / "server.pem").write_text("x"), "server", None, "not a certificate in PEM form"),
        (lambda c, other: shutil.copy(other / "ca.pem", c), "server", None, "is not from the CA"),
    ],
)
@pytest.mark.parametrize("make", [server_context, client_context])
def test_contexts_teach(tmp_path, certificates, make, spoil, role, name, what):
    shutil.copytree(certificates, tmp_path / "c")
    make_certificates(tmp_path / "other")
    if spoil:
        spoil(tmp_path / "c", tmp_path / "other")
    with pytest.raises(CertificateError, match=what):
        make(tmp_path / "c", role, name)


@pytest.mark.parametrize("role", ["", "ca", "../x", "Server", "a" * 40, "a b"])
def test_strange_roles_are_refused(tmp_path, role):
    with pytest.raises(CertificateError, match="cannot name a party"):
        make_certificates(tmp_path, roles=(role,))
    assert not list(tmp_path.iterdir())


# Renewal.


def test_what_ends_soon_is_renewed_with_its_key(call, tmp_path):
    """The old certificate goes on until it ends, and can be revoked with the name."""
    make_certificates(tmp_path, days=10, hosts=["model.example"], keep_ca_key=True)
    add_certificate(tmp_path, "client", days=300, name="alice")
    add_certificate(tmp_path, "client", days=10, name="gone")
    revoke(tmp_path, "gone")
    (tmp_path / "client.key").rename(tmp_path / "away")  # whose key has left
    before = {row.file.stem: row for row in describe(tmp_path)}
    keys = {file: file.read_bytes() for file in tmp_path.glob("*.key")}
    code, printed, errors = call("certs", "renew", tmp_path, "--days", "90", "--format", "json")
    assert (code, errors) == (0, "")
    names = {"server", "client", "dealer", "helper"}
    assert {Path(row["file"]).stem for row in json.loads(printed)["renewed"]} == names
    for row in describe(tmp_path):
        old = before[row.file.stem]
        assert (row.role, row.hosts) == (old.role, old.hosts)
        assert (row.fingerprint == old.fingerprint) == (row.file.stem not in names)
        assert row.file.stem not in names or 89 < row.days_left < 90.001
    assert {file: file.read_bytes() for file in tmp_path.glob("*.key")} == keys
    server_context(tmp_path, "server")
    assert "nothing in" in call("certs", "renew", tmp_path)[1]
    assert len(revoke(tmp_path, "server")) == 2


def test_a_renewal_that_cannot_be_is_one_line_and_renews_nothing(refused, tmp_path):
    make_certificates(tmp_path, days=10, keep_ca_key=True)
    revoke(tmp_path, "helper")
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    for words, what in (
        (["--name", "server", "--name", "bob"], "bob: is no certificate in"),
        (["--name", "helper"], "helper: was revoked; add it with `blindformer certs add`"),
        (["--days", "9999"], "ask for fewer days, or a new CA"),
    ):
        assert what in refused("certs", "renew", tmp_path, *words)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    (tmp_path / "ca.key").unlink()
    assert "ca.key is missing" in refused("certs", "renew", tmp_path)


# Revocation.


def test_what_can_be_revoked_and_how_it_is_named(call, tmp_path):
    """A name: with what was replaced under it. A file or a fingerprint: the key, and nobody's newer one."""
    make_certificates(tmp_path, keep_ca_key=True)
    for name in ("alice", "bob", "carol"):
        add_certificate(tmp_path, "client", name=name)
    old = {row.file.stem: row.fingerprint for row in describe(tmp_path)}
    shutil.copy(tmp_path / "carol.pem", tmp_path.parent / "sent.crt")
    for name in ("alice", "bob", "carol"):
        add_certificate(tmp_path, "client", name=name, force=True)
    new = {row.file.stem: row.fingerprint for row in describe(tmp_path)}

    code, printed, errors = call("certs", "revoke", tmp_path, "alice")
    assert (code, errors) == (0, "")
    assert all(digits["alice"][:8] in printed for digits in (old, new))
    assert [row.file.stem for row in describe(tmp_path) if row.revoked] == ["alice"]
    colons = ":".join(old["bob"][at : at + 2] for at in range(0, 64, 2)).upper()  # as openssl prints it
    assert list(map(fingerprint, revoke(tmp_path, colons))) == [old["bob"]]
    assert list(map(fingerprint, revoke(tmp_path, str(tmp_path.parent / "sent.crt")))) == [old["carol"]]
    assert [row.file.stem for row in describe(tmp_path) if row.revoked] == ["alice"]
    assert revoke(tmp_path, new["carol"][:8])
    revoked = read_revoked(tmp_path)
    assert revoked is not None
    assert (list_number(revoked), len(revoked)) == (4, 5)
    assert revoked.next_update_utc == describe(tmp_path)[0].expires  # the CA's: it never lapses before

    assert "was revoked before" in call("certs", "revoke", tmp_path, "alice")[1]
    assert read_revoked(tmp_path) == revoked
    assert "revoked" in call("certs", "show", tmp_path)[1]
    shown = json.loads(call("certs", "show", tmp_path, "--format", "json")[1])["certificates"]
    assert {Path(row["file"]).stem for row in shown if row["revoked"]} == {"alice", "carol"}
    assert new["alice"] in [row["fingerprint"] for row in shown]
    make_certificates(tmp_path, force=True)  # a new CA: nobody of the old one is anybody
    assert read_revoked(tmp_path) is None


def test_what_cannot_be_revoked_is_one_line(refused, tmp_path, certificates):
    make_certificates(tmp_path, keep_ca_key=True)
    for which, what in (
        ("bob", "is no certificate known in"),
        ("0" * 8, "is no certificate known in"),
        ("abc", "or at least 8 digits of a fingerprint"),
        ("ca", "is no certificate that the CA of this folder has signed"),
        (certificates / "client.pem", "is no certificate that the CA of this folder has signed"),
        (tmp_path / "client.key", "is not a certificate in PEM form"),
    ):
        assert what in refused("certs", "revoke", tmp_path, which)
    shutil.copy(certificates / "ca.key", tmp_path / "ca.key")
    assert "is not the key of" in refused("certs", "revoke", tmp_path, "client")
    (tmp_path / "ca.key").unlink()
    assert "ca.key is missing" in refused("certs", "revoke", tmp_path, "client")


def listed(folder: Path, starts: float, ends: float | None) -> bytes:
    """A list of nobody, by the CA of `folder`, good between these days from now."""
    key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
    authority = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    now, days = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.subject).last_update(now + starts * days)
    revocations = builder.next_update(now + (ends or 0) * days).sign(key, hashes.SHA256())
    return revocations.public_bytes(serialization.Encoding.PEM)


def test_a_list_that_cannot_be_believed_fails_closed(tmp_path):
    make_certificates(tmp_path / "c", keep_ca_key=True)
    make_certificates(tmp_path / "other", keep_ca_key=True)
    good = listed(tmp_path / "c", -1, 1)
    for content, what in (
        (b"nonsense", "is not one list of revoked certificates in PEM form; copy the newest one here"),
        (good[:-60], "is not one list"),
        (good + (tmp_path / "other" / "ca.pem").read_bytes(), "is not one list"),  # OpenSSL would trust that CA, too
        (listed(tmp_path / "other", -1, 1), r"revoked\.pem is not from the CA in .*ca\.pem"),
        (listed(tmp_path / "c", -2, -1), r"revoked\.pem ended on \d{4}-\d\d-\d\d; copy the newest one here"),
        (listed(tmp_path / "c", 1, 2), "is good from .* UTC; compare the clocks"),
    ):
        (tmp_path / "c" / "revoked.pem").write_bytes(content)
        for make in (server_context, client_context):
            with pytest.raises(CertificateError, match=what):
                make(tmp_path / "c", "server")
        with pytest.raises(CertificateError, match=what):
            revoke(tmp_path / "c", "client")
    (tmp_path / "c" / "revoked.pem").write_bytes(good)
    assert server_context(tmp_path / "c", "server").verify_flags & ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
    assert revoke(tmp_path / "c", "client")
