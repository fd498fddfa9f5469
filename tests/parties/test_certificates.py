"""Making certificates, and the errors of contexts made from them."""

from __future__ import annotations

import datetime
import re
import shutil
import ssl
from pathlib import Path

import pytest
from blindformer.parties.certificates import (
    ROLES,
    CertificateError,
    add_certificate,
    client_context,
    describe,
    make_certificates,
    server_context,
)


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
    with pytest.raises(CertificateError, match=r"ca.key is missing.* certs make .* --keep-ca-key --force$"):
        add_certificate(tmp_path, "client", name="client-2")
    (tmp_path / "ca.key").write_text("nonsense")
    with pytest.raises(CertificateError, match=r"ca.key is not a key that"):
        add_certificate(tmp_path, "client", name="client-2")


def test_a_folder_that_cannot_be_written_is_one_line(call, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for folder in (file, file / "certs", Path("/proc/certs")):
        code, printed, errors = call("certs", "make", folder)
        assert (code, printed) == (1, "")
        assert re.fullmatch(rf"blindformer: {folder}: cannot be written \(.+\); choose a folder .*\n", errors)


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


def test_contexts_teach(tmp_path, certificates):
    folder = tmp_path / "c"
    shutil.copytree(certificates, folder)
    with pytest.raises(CertificateError, match=r"auditor\.pem is missing"):
        client_context(folder, "auditor")
    with pytest.raises(CertificateError, match="is the certificate of client, not of server"):
        client_context(folder, "server", "client")
    add_certificate(folder, "dealer", days=-2, name="old")
    with pytest.raises(CertificateError, match="expired on"):
        server_context(folder, "dealer", "old")
    (folder / "server.key").chmod(0o644)
    with pytest.raises(CertificateError, match="can be read by other users; run: chmod 600"):
        server_context(folder, "server")
    (folder / "server.key").unlink()
    with pytest.raises(CertificateError, match=r"server\.key is missing"):
        server_context(folder, "server")
    shutil.copy(folder / "client.key", folder / "server.key")
    with pytest.raises(CertificateError, match="does not belong to"):
        server_context(folder, "server")
    (folder / "dealer.pem").write_text("nonsense")
    with pytest.raises(CertificateError, match="not a certificate in PEM form"):
        server_context(folder, "dealer")
    make_certificates(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "ca.pem", folder / "ca.pem")
    with pytest.raises(CertificateError, match="is not from the CA"):
        client_context(folder, "client")


@pytest.mark.parametrize("role", ["", "ca", "../x", "Server", "a" * 40, "a b"])
def test_strange_roles_are_refused(tmp_path, role):
    with pytest.raises(CertificateError, match="cannot name a party"):
        make_certificates(tmp_path, roles=(role,))
    assert not list(tmp_path.iterdir())
