"""The doctor on this machine: its configuration, its certificates and its kernels."""

from __future__ import annotations

import datetime
import shutil

import pytest
from blindformer.parties.certificates import issuing as made
from blindformer.parties.certificates.issuing import make_certificates, revoke
from blindformer.parties.config import load_settings
from blindformer.parties.doctor.examine import _machine, examine
from blindformer.tests.parties.doctor.conftest import found


def test_every_fault_of_the_file_is_a_line(place):
    checks = list(examine(place("dealer", "[dealer]\nworkers = 0\nquue = 1\n")))
    assert [check.status for check in checks] == ["bad", "bad"]
    assert "did you mean dealer.queue?" in checks[1].found


def test_the_role_is_the_one_whose_key_is_here(place, tmp_path):
    assert found(place("dealer"))["config"].found.startswith("dealer of ")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "blindformer.toml").write_text("")
    assert "holds no party's key" in found(tmp_path / "empty" / "blindformer.toml")["party"].found
    shutil.copy(tmp_path / "all" / "server.key", tmp_path / "dealer" / "certs" / "server.key")
    both = found(tmp_path / "dealer" / "blindformer.toml")
    assert "holds the keys of server, dealer" in both["party"].found
    checks = found(tmp_path / "dealer" / "blindformer.toml", "dealer")
    assert checks["keys"].status == "warning"
    assert "server.key" in checks["keys"].found


@pytest.mark.parametrize(
    ("text", "warned"),
    [
        ("", False),
        ('[dealer]\nlisten = "0.0.0.0:7444"\n', True),
        ('[parties.server]\naddress = "server.example.org:7443"\n', True),
    ],
)
def test_the_ca_s_key_belongs_on_no_party_s_machine(place, tmp_path, text, warned):
    path = place("dealer", text)
    make_certificates(tmp_path / "dealer" / "certs", ("dealer",), keep_ca_key=True, force=True)
    checks = found(path)
    assert ("CA's key" in checks) == warned
    if warned:
        assert (checks["CA's key"].status, "can pass for any party" in checks["CA's key"].found) == ("warning", True)
        assert "keep it offline" in checks["CA's key"].fix


def test_a_key_that_others_can_read_and_files_that_do_not_belong_together(place, tmp_path):
    path, certs = place("dealer"), tmp_path / "dealer" / "certs"
    (certs / "dealer.key").chmod(0o644)
    check = found(path)["certificate"]
    assert (check.status, "chmod 600" in check.fix) == ("bad", True)
    shutil.copy(tmp_path / "all" / "server.pem", certs / "dealer.pem")
    assert "is the certificate of server, not of dealer" in found(path)["certificate"].found


@pytest.mark.parametrize(("days", "status"), [(15, "good"), (13, "warning")])
def test_a_certificate_that_ends_soon(place, tmp_path, days, status):
    path = place("dealer")
    make_certificates(tmp_path / "dealer" / "certs", ("dealer",), days=days, force=True)
    check = found(path)["dates"]
    assert check.status == status
    assert days - 1 < check.figures["days_left"] <= days


def test_a_certificate_that_was_revoked(place, tmp_path):
    path, certs = place("dealer"), tmp_path / "dealer" / "certs"
    make_certificates(certs, ("dealer",), keep_ca_key=True, force=True)
    revoke(certs, "dealer")
    check = found(path)["certificate"]
    assert (check.status, check.fix) == ("bad", "ask whoever runs the CA for a new one")
    assert "dealer.pem was revoked, so others refuse it" in check.found


def test_a_clock_that_is_behind_the_certificates(place, tmp_path, monkeypatch):
    path = place("dealer")
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    with monkeypatch.context() as patch:
        patch.setattr(made, "now", lambda: later)
        make_certificates(tmp_path / "dealer" / "certs", ("dealer",), days=90, force=True)
    check = found(path)["dates"]
    assert check.status == "bad"
    assert "set the clock" in check.fix


@pytest.mark.parametrize(
    ("dialled", "hosts", "status"),
    [
        ("dealer.example", ["dealer.example"], "good"),
        ("Dealer.Example.", ["dealer.example"], "good"),
        ("dealer.example", ["other.example"], "bad"),
        ("[2001:db8::1]", ["2001:0db8:0:0::1"], "good"),
        ("192.0.2.7", ["192.0.2.7"], "good"),
        ("192.0.2.7", ["192.0.2.70"], "bad"),
    ],
)
def test_the_certificate_has_to_name_the_host_that_others_dial(place, tmp_path, dialled, hosts, status):
    text = f'[parties.dealer]\naddress = "{dialled}:7444"\n[dealer]\nlisten = "0.0.0.0:0"\n'
    path = place("dealer", text)
    make_certificates(tmp_path / "dealer" / "certs", ("dealer",), days=90, hosts=hosts, force=True)
    check = found(path)["host names"]
    assert check.status == status
    assert status == "good" or "--host" in check.fix


def test_a_level_without_fast_kernels_is_a_warning(monkeypatch, tmp_path):
    (file := tmp_path / "blindformer.toml").touch()
    for level, status in (("x86-64-v3", "good"), ("x86-64", "warning"), ("torch", "warning")):
        monkeypatch.setattr("blindformer.levels.level", lambda level=level: level)
        monkeypatch.setattr("blindformer.parties.doctor.examine.level", lambda level=level: level)
        (check, *_) = _machine(load_settings(file), "client")
        assert (check.name, check.status, check.figures["level"]) == ("kernels", status, level)
        assert bool(check.fix) == (status == "warning")
