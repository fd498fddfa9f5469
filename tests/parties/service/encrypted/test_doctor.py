"""The doctor of encrypted queries: each fault is one line that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
from blindformer.parties.client.client import Client
from blindformer.parties.config import load_settings
from blindformer.parties.doctor import checks
from blindformer.protocols.errors import PeerDisagrees
from blindformer.tests.parties.doctor.conftest import found


@pytest.fixture
def config(made, tmp_path):
    """`config(address, more)`: a blindformer.toml."""

    def write(address="localhost:1", more=""):
        file = tmp_path / "blindformer.toml"
        file.write_text(
            f'[session]\nprotocol = "ckks"\n[parties.server]\naddress = "{address}"\n'
            f'[certificates]\nfolder = "{made.certificates}"\n[client]\nfolder = "{made.folder}/client"\n'
            f'[server]\nfolder = "{made.folder}/server"\nlisten = "127.0.0.1:0"\n{more}'
        )
        return file

    return write


def bad(rows):
    return {name: row.found for name, row in rows.items() if row.status == "bad"}


# The other side.


def test_a_server_is_recognised_and_has_these_programs(site, config):
    rows = found(config(site.address), "client")
    assert set(bad(rows)) == {"circuits"}
    assert "for tests alone" in bad(rows)["circuits"]
    assert rows["server: programs"].found == "1 of 1 known there"
    assert rows["server: network"].figures["rtt_s"] > 0
    assert abs(rows["server: clock"].figures["clock_s"]) < 30
    assert not any(name.startswith("dealer") for name in rows)


def test_a_client_of_another_protocol_at_this_server(site, config, made):
    file = config(site.address)
    file.write_text(file.read_text().replace("ckks", "beaver"))
    assert "0 of 1 known there" in bad(found(file, "client"))["server: programs"]
    where = {"dealer": "localhost:1", "folder": made.folder / "client", "certificates": made.certificates}
    with (
        Client(site.address, **where) as client,
        pytest.raises(PeerDisagrees, match="has protocol ckks, this side has beaver; name the same protocol"),
    ):
        client("how is my password ?")


def test_a_server_with_another_circuit(site, config, monkeypatch):
    needs = checks._circuits

    def another(settings, role):
        mine, check = needs(settings, role)
        return [replace(facts, steps=("another",)) for facts in mine], check

    monkeypatch.setattr(checks, "ENCRYPTED_QUERIES", replace(checks.ENCRYPTED_QUERIES, programs=another))
    assert "0 of 1 known there" in bad(found(config(site.address), "client"))["server: programs"]


# This side.


def test_a_server_without_room_for_keys(made, monkeypatch):
    facts, _ = checks._circuits(load_settings(None, **{"server.folder": made.folder / "server"}), "server")

    def rows(**options):
        settings = load_settings(None, **{f"server.{name}": value for name, value in options.items()})
        return {row.name: row for row in checks._room_for_keys(settings, facts)}

    assert [row.status for row in rows(workers=1, keys_gb=0.1, keys_memory_gb=0.1).values()] == ["good", "good"]
    assert "one client's may take" in rows(keys_gb=1e-6)["keys on disk"].found
    assert "lower server.keys_memory_gb" in rows(keys_memory_gb=1e6)["keys in memory"].fix
    assert rows(keys_gb=1e6)["keys on disk"].status == "warning"
