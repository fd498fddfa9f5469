"""The doctor of encrypted queries: each fault is one line that says what to do."""

from __future__ import annotations

import contextlib
import threading
import time
from types import SimpleNamespace

import pytest
from blindformer.models.artifacts import load_programs
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import server_context
from blindformer.parties.client.client import Client
from blindformer.parties.config import load_settings
from blindformer.parties.doctor import checks
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.parties.transport.tls import listen
from blindformer.protocols.ckks.facts import facts_from
from blindformer.protocols.errors import PeerError, PeerRefused
from blindformer.tests.parties.doctor.conftest import found
from blindformer.tests.patience import PATIENCE
from blindformer.versions import my_version


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
    assert set(bad(rows)) == {"circuits"}  # of a ring for tests
    assert "HTTPS" in rows["server: reached"].found
    assert rows["server: programs"].found == "1 of 1 known there"
    assert rows["server: network"].figures["request_s"] > 0
    assert abs(rows["server: clock"].figures["clock_s"]) < 30
    assert not any(name.startswith("dealer") for name in rows)


def test_nobody_there_and_somebody_of_another_ca(site, config, made, tmp_path):
    assert "server: reached" in bad(found(config("127.0.0.1:1"), "client"))
    make_certificates(tmp_path / "other")
    file = config(site.address)
    file.write_text(file.read_text().replace(str(made.certificates), str(tmp_path / "other")))
    assert "another CA" in bad(found(file, "client"))["server: reached"]


def test_a_server_that_speaks_something_else(config, made):
    with listen("127.0.0.1", 0, server_context(made.certificates, "server"), timeout=PATIENCE) as listener:

        def serve():
            with contextlib.suppress(PeerError), listener.accept(10) as channel:
                channel.recv_message()

        thread = threading.Thread(target=serve)
        thread.start()
        row = found(config(f"127.0.0.1:{listener.address[1]}"), "client")["server: reached"]
        thread.join()
    assert (row.status, "protocol ckks?" in row.fix) == ("bad", True)


def test_a_client_of_sessions_at_this_server(site, config, made):
    file = config(site.address)
    file.write_text(file.read_text().replace("ckks", "beaver"))
    row = found(file, "client")["server: reached"]
    assert (row.status, "another protocol" in row.fix) == ("bad", True)
    assert "encrypted queries are served here; ask with protocol ckks" in row.found
    where = {"dealer": "localhost:1", "folder": made.folder / "client", "certificates": made.certificates}
    with Client(site.address, **where) as client, pytest.raises(PeerRefused, match="ask with protocol ckks"):
        client("how is my password ?")


@pytest.mark.parametrize(("ahead", "finding"), [(300, "ahead of"), (-300, "behind"), (20, "as here")])
def test_a_server_whose_clock_is_off(site, config, monkeypatch, ahead, finding):
    monkeypatch.setattr(
        checks, "time", SimpleNamespace(perf_counter=time.perf_counter, time=lambda: time.time() - ahead)
    )
    row = found(config(site.address), "client")["server: clock"]
    assert (row.status, finding in row.found) == ("good" if finding == "as here" else "warning", True)


def test_a_date_that_is_none():
    assert checks._clock_ahead(None) is None
    assert checks._clock_ahead("yesterday") is None


@pytest.mark.parametrize(
    ("answers", "name", "finding"),
    [
        ({"/v1/health": {"healthy": False}}, "server: health", "not healthy"),
        ({"/v1/health": SlotsBusy("server", 30.0)}, "server: reached", "is busy, or stopping"),
        ({"version": "0.0.1"}, "server: version", "0.0.1 there"),
        ({"models": [{"facts": {}}]}, "server: programs", "cannot be read"),
        ({"models": []}, "server: programs", "0 of 1 known there"),
        ({"steps": ["another"]}, "server: circuits", "other parameters or rotations there"),
    ],
)
def test_what_the_server_has_otherwise(config, made, monkeypatch, answers, name, finding):
    (program,) = load_programs(made.folder / "client").values()
    (facts,) = checks._circuits(made.folder / "client", "client", [program])
    facts = facts_from({**facts.to_json(), **{"steps": answers.get("steps", facts.steps)}}, secure=False)
    models = answers.get("models", [{"facts": facts.to_json()}])
    about = {"version": answers.get("version", my_version()), "models": models}

    class Answering:
        date = None

        def __init__(self, *more):
            pass

        def ask(self, method, path):
            answer = {"/v1/health": {"healthy": True}, "/v1/models": about, **answers}[path]
            if isinstance(answer, Exception):
                raise answer
            return answer

    monkeypatch.setattr(checks, "Api", Answering)
    rows = bad(found(config(), "client"))
    assert finding in rows[name]
    assert set(rows) == {"circuits", name}


# This side.


def test_a_folder_that_is_for_sessions(made):
    (program,) = load_programs(made.folder / "server").values()
    (row,) = checks.ENCRYPTED_QUERIES.files(
        load_settings(None, **{"server.folder": made.folder / "server"}), "server", [program]
    )
    assert (row.status, "for tests alone" in row.found) == ("bad", True)


def test_libraries_that_are_missing(config, monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None if name == "uvicorn" else name)
    row = found(config(), "server")["libraries"]
    assert (row.found, row.fix) == ("uvicorn missing", "run: pip install 'blindformer[he]'")


def test_a_server_without_room_for_keys(made, monkeypatch):
    (program,) = load_programs(made.folder / "server").values()
    facts = checks._circuits(made.folder / "server", "server", [program])

    def rows(**options):
        settings = load_settings(None, **{f"server.{name}": value for name, value in options.items()})
        return {row.name: row for row in checks._room_for_keys(settings, facts)}

    assert [row.status for row in rows(workers=1, keys_gb=0.1, keys_memory_gb=0.1).values()] == ["good", "good"]
    assert "one client's may take" in rows(keys_gb=1e-6)["keys on disk"].found
    assert "lower server.keys_memory_gb" in rows(keys_memory_gb=1e6)["keys in memory"].fix
    assert rows(keys_gb=1e6)["keys on disk"].status == "warning"


def test_nobody_deals(config):
    assert "protocol ckks has no dealer" in bad(found(config(), "dealer"))["party"]
