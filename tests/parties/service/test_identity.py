"""What a service reads of its certificates while it runs, when, and what it says of them."""

from __future__ import annotations

import io
import json
import shutil
import time
from types import SimpleNamespace

import pytest
from blindformer.parties.certificates.issuing import add_certificate, make_certificates, renew_certificates, revoke
from blindformer.parties.certificates.tls_folder import CertificateError
from blindformer.parties.service import identity as identities
from blindformer.parties.service.identity import Identity, Renewal
from blindformer.parties.service.logs import Log


@pytest.fixture
def folder(tmp_path):
    make_certificates(tmp_path / "c", days=30, keep_ca_key=True)
    return tmp_path / "c"


@pytest.fixture
def watched(folder, monkeypatch):
    """`look()` is a look at the files of the server, and gives the lines that it logs."""
    out, now = io.StringIO(), [1000.0]
    # Its clock alone: an event loop of another thread that read this one would sleep until tomorrow.
    monkeypatch.setattr(identities, "time", SimpleNamespace(monotonic=lambda: now[0]))
    taken = []
    renewal = Renewal(Identity(folder, "server"), Log("server", "json", out), lambda: taken.append(1))

    def look(seconds: float = 1.1):
        now[0] += seconds
        at = out.tell()
        renewal.look()
        return [json.loads(line) for line in out.getvalue()[at:].splitlines()]

    look.identity, look.taken = renewal._identity, taken
    return look


def test_new_files_are_taken_when_all_have_come_and_bad_ones_are_named_once(watched, folder):
    assert watched() == []
    before = watched.identity.accepting
    add_certificate(folder, "server", days=60, force=True)
    key = (folder / "server.key").read_bytes()
    (folder / "server.key").unlink()  # the certificate came first
    assert watched() == []
    (folder / "server.key").write_bytes(key)
    (folder / "server.key").chmod(0o600)
    assert watched() == []
    assert [line["event"] for line in watched()] == ["certificates-reloaded"]
    assert watched.identity.accepting is not before
    assert watched.identity.expires == pytest.approx(time.time() + 60 * 86400, abs=100)
    assert len(watched.taken) == 1
    kept = watched.identity.accepting
    (folder / "server.key").write_text("nonsense")
    kept_once = [watched(), *(line["event"] for line in watched()), watched(), watched()]
    assert kept_once == [[], "certificates-kept", [], []]
    assert watched.identity.accepting is kept
    (folder / "server.key").write_bytes(key)
    assert [watched(), *(line["event"] for line in watched())] == [[], "certificates-reloaded"]


def test_it_warns_once_a_day_of_what_ends_first(watched, folder):
    assert watched() == []
    renew_certificates(folder, days=5, within=99, names=["server"])
    assert watched() == []
    reloaded, warned = watched()
    assert [line["event"] for line in (reloaded, warned)] == ["certificates-reloaded", "certificate-ends"]
    assert "server.pem ends on" in warned["what"]
    assert "in 5 days; renew it" in warned["what"]
    assert watched() == []
    assert [line["event"] for line in watched(86400)] == ["certificate-ends"]


def test_who_is_revoked_stays_so_whatever_is_copied_here(watched, folder):
    for name in ("alice", "bob"):
        add_certificate(folder, "client", name=name)
    serials = [f"{certificate.serial_number:x}" for name in ("alice", "bob") for certificate in revoke(folder, name)]
    first = folder.parent / "first.pem"
    shutil.copy(folder / "revoked.pem", first)
    watched(), watched()
    assert all(map(watched.identity.revoked, serials))
    add_certificate(folder, "client", name="carol")
    (serial,) = (f"{certificate.serial_number:x}" for certificate in revoke(folder, "carol"))
    watched(), watched()
    shutil.copy(first, folder / "revoked.pem")
    watched()
    assert "revoked.pem is number 2, older than the one in use; copy number 3 or a newer one" in watched()[0]["what"]
    (folder / "revoked.pem").unlink()
    watched()
    assert "revoked.pem is missing; copy number 3" in watched()[0]["what"]
    assert watched.identity.revoked(serial)


def test_ones_own_revocation_is_said(watched, folder):
    """A service that runs goes on taking lists, and is refused by others; one that starts does not."""
    revoke(folder, "server")
    watched()
    assert "server.pem was revoked, so others refuse it; ask whoever runs the CA" in watched()[1]["what"]
    with pytest.raises(CertificateError, match=r"server\.pem was revoked; ask whoever runs the CA for a new one"):
        Identity(folder, "server")
