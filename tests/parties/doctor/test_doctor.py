"""The doctor finds each fault of a deployment and says in one line what to do; in a good one it finds none."""

from __future__ import annotations

import json
import shutil
import socket
import threading

import pytest
from blindformer.levels import slow
from blindformer.models.delegated.building import delegate_folder
from blindformer.models.program.two_server import for_two_servers
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import server_context
from blindformer.parties.doctor import checks as doctor_checks
from blindformer.parties.session.ledger import Entry
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.parties.transport.handshake import PeerFacts, my_facts
from blindformer.parties.transport.tls import listen
from blindformer.tests.pages import free_port
from blindformer.tests.parties.doctor.conftest import addresses, answering, found, to_fix
from blindformer.tests.patience import PATIENCE

# A deployment with nothing wrong.


def test_a_good_client_finds_nothing_to_fix(place, compiled, tmp_path):
    program = compiled[1].hash()
    with (
        answering(tmp_path / "all", "server", my_facts("server", programs=[program, "ab" * 32])) as server,
        answering(tmp_path / "all", "dealer", my_facts("dealer")) as dealer,
    ):
        path = place("client", addresses(server=server, dealer=dealer) + '[client]\ncache = "cache"\nstore = "store"\n')
        checks = found(path)
    assert to_fix(checks) == {}
    assert {"config", "certificate", "dates", "cores", "artifacts", "store", "cache"} <= set(checks)
    assert {"reached", "version", "clock", "network"} <= {name.partition(": ")[2] for name in checks}
    assert checks["server: programs"].found == "1 of 1 known there"
    assert checks["dealer: network"].figures["rtt_s"] > 0
    assert "iperf3" in checks["server: network"].found


def test_good_services_find_nothing_to_fix(place, tmp_path):
    with answering(tmp_path / "all", "dealer", my_facts("dealer")) as dealer:
        mine = free_port()
        text = addresses(server=mine, dealer=dealer) + f'[server]\nlisten = "127.0.0.1:{mine}"\nworkers = 1\n'
        checks = found(place("server", text))
        assert to_fix(checks) == {}
        assert "dealer: reached" in checks
    checks = found(place("dealer", addresses(dealer=free_port()) + "[dealer]\nworkers = 1\n"))
    assert to_fix(checks) == {}


def test_with_two_servers_the_program_is_the_one_handed_over(place, compiled, tmp_path):
    program = for_two_servers(compiled[1]).hash()
    with (
        answering(tmp_path / "all", "server", my_facts("server", programs=[program])) as server,
        answering(tmp_path / "all", "dealer", my_facts("dealer")) as dealer,
        answering(tmp_path / "all", "helper", my_facts("helper", programs=[program])) as helper,
    ):
        text = '[session]\ntopology = "helper"\n' + addresses(server=server, dealer=dealer, helper=helper)
        owner = found(place("client", text))
        second = found(place("helper", text + '[helper]\nlisten = "127.0.0.1:0"\nworkers = 1\ncache = "cache"\n'))
    for checks in (owner, second):
        assert to_fix(checks) == {}
        assert checks["server: programs"].found == "1 of 1 known there"
    assert "helper: programs" in owner
    assert "dealer: reached" not in owner  # an owner leaves the dealer to the helper
    assert "dealer: reached" in second
    assert ("cache" in owner, "cache" in second) == (False, True)


# The machine and its files.


def test_artifacts_that_are_missing_or_damaged(place, tmp_path):
    path = place("client", addresses(server=free_port(), dealer=free_port()))
    program = next((tmp_path / "client" / "compiled").rglob("program.json"))
    program.write_text(program.read_text().replace("1", "2", 1))
    assert found(path)["artifacts"].status == "bad"
    shutil.rmtree(tmp_path / "client" / "compiled")
    assert found(path)["artifacts"].status == "bad"


@pytest.mark.parametrize(
    ("text", "name", "status", "fix"),
    [
        ('[parties.dealer]\naddress = "dealer.example:7444"\n', "listening", "bad", '"0.0.0.0:7444"'),
        ('[parties.dealer]\naddress = "192.0.2.7:7444"\n[dealer]\nlisten = "192.0.2.7:7444"\n', "listening", "bad", ""),
        ('[dealer]\nmetrics = "0.0.0.0:9100"\n', "metrics", "warning", "firewall"),
    ],
    ids=["loopback", "not ours", "metrics for everybody"],
)
def test_where_a_service_listens(place, text, name, status, fix):
    check = found(place("dealer", text))[name]
    assert check.status == status
    assert fix in check.fix


def test_more_sessions_than_open_files(place):
    check = found(place("dealer", "[dealer]\nsessions = 10000\nqueue = 100000\n")).get("open files")
    assert check is None or ("ulimit" in check.fix and check.status == "warning")


def test_an_address_in_use(place):
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        text = addresses(dealer=port) + f'[dealer]\nlisten = "127.0.0.1:{port}"\n'
        assert "the service seems to run" in found(place("dealer", text))["listening"].found


def test_a_ledger_a_damaged_one_and_a_store_that_cannot_be_written(place, tmp_path):
    path = place("client", addresses(server=free_port(), dealer=free_port()) + '[client]\nstore = "store"\n')
    assert "ledger" not in found(path)  # nothing was made ahead yet
    ledger = PreprocessingStore(tmp_path / "client" / "store").ledger
    ledger.open_session("ab" * 16, "program", "weights", "")
    ledger.add(Entry("ab" * 16, 0, b"k" * 32, None, 0, None))
    assert found(path)["ledger"].found == "preprocessed correlations ready: 1"
    ledger.path.write_bytes(b"nonsense" * 1000)
    assert found(path)["ledger"].status == "bad"
    (tmp_path / "file").write_text("")  # no folder can be made in a file
    path = place("client", addresses(server=free_port(), dealer=free_port()) + '[client]\nstore = "../file/store"\n')
    assert found(path)["store"].status == "bad"


def test_stored_passes_of_a_public_model(place, tiny_classifier, tmp_path):
    """Room for their corrections, and how many are left: in a copy of the client's store none."""
    compiled = delegate_folder(tiny_classifier, tmp_path / "open")
    weights = next((compiled / "server" / "integers").iterdir())
    for role in ("client", "server"):
        text = f'[session]\nprotocol = "delegated"\n[{role}]\nfolder = "{compiled / role}"\nstore = "store"\n'
        path = place(role, text)
        checks, store = found(path), tmp_path / role / "store"
        assert (checks["artifacts"].status, checks["store"].status) == ("good", "good")
        assert ("ledger" in checks, checks["store"].figures["bytes_each"] > 4096) == (False, role == "server")
        ledger = PreprocessingStore(store, bound=role == "client").ledger
        ledger.open_session("ab" * 16, "program", "weights", "")
        ledger.add(Entry("ab" * 16, 0, b"k" * 32, None, 0, None))
        assert found(path)["ledger"].figures == {"left": 1}
        shutil.move(store, tmp_path / "moved")
        shutil.copytree(tmp_path / "moved", store)
        shutil.rmtree(tmp_path / "moved")
        assert found(path)["ledger"].figures == {"left": int(role == "server")}
    weights.write_bytes(b"nonsense")
    assert found(path)["artifacts"].status == "bad"


# The others.


def test_a_peer_that_is_not_there(place):
    nobody = free_port()
    checks = found(place("client", addresses(server=nobody, dealer=nobody)))
    assert checks["server: reached"].status == checks["dealer: reached"].status == "bad"
    assert "start the server" in checks["server: reached"].fix
    unknown = '[parties.server]\naddress = "no-such-host.invalid:1"\n' + addresses(dealer=nobody)
    assert "is not known" in found(place("client", unknown))["server: reached"].found


def test_a_peer_of_another_ca_and_one_of_another_role(place, tmp_path):
    make_certificates(tmp_path / "other")
    with answering(tmp_path / "other", "server", my_facts("server")) as port:
        checks = found(place("client", addresses(server=port, dealer=free_port())))
        assert "another CA" in checks["server: reached"].found
    with answering(tmp_path / "all", "dealer", my_facts("dealer")) as port:
        checks = found(place("client", addresses(server=port, dealer=port)))
        assert "the certificate of a dealer" in checks["server: reached"].found
        assert checks["dealer: reached"].status == "good"


def test_a_peer_that_is_silent_before_tls_and_after_it(place, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_checks, "ANSWER_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute:  # nobody accepts, and the kernel does
        fix = found(place("client", addresses(server=mute.getsockname()[1], dealer=1)))["server: reached"].fix
        assert "let firewalls pass" in fix
        assert "another protocol" not in fix
    with listen("127.0.0.1", 0, server_context(tmp_path / "all", "server")) as listener:
        done = threading.Event()

        def shake_hands() -> None:
            with listener.accept(PATIENCE):
                done.wait(PATIENCE)

        thread = threading.Thread(target=shake_hands)
        thread.start()
        row = found(place("client", addresses(server=listener.address[1], dealer=1)))["server: reached"]
        done.set()
        thread.join()
    assert "sent nothing" in row.found
    assert "another protocol" in row.fix
    assert "firewalls" not in row.fix


def test_what_the_peer_has_otherwise(place, tmp_path):
    other = PeerFacts(blindformer="0.0.1", role="dealer", config="ab" * 32)
    with answering(tmp_path / "all", "dealer", other) as dealer:
        text = addresses(server=free_port(), dealer=dealer)
        checks = found(place("server", text + '[server]\nlisten = "127.0.0.1:0"\n'))
    assert checks["dealer: version"].status == "bad"
    assert checks["dealer: config"].status == "bad"
    assert "flags count too" in checks["dealer: config"].fix
    with answering(tmp_path / "all", "server", my_facts("server", programs=["ab" * 32])) as server:
        checks = found(place("client", addresses(server=server, dealer=free_port())))
    assert (checks["server: programs"].status, checks["server: programs"].found) == ("bad", "0 of 1 known there")


@pytest.mark.parametrize(("ahead", "finding"), [(300.0, "ahead of"), (-300.0, "behind")])
def test_a_peer_whose_clock_is_off(place, tmp_path, ahead, finding):
    with answering(tmp_path / "all", "dealer", my_facts("dealer"), ahead) as dealer:
        text = addresses(server=free_port(), dealer=dealer)
        check = found(place("server", text))["dealer: clock"]
    assert check.status == "warning"
    assert finding in check.found
    assert abs(check.figures["clock_s"] - ahead) < 30


# The command.


def test_a_set_up_without_a_configuration_file(place, compiled, tmp_path, call, monkeypatch):
    """Examined as with one: the options name the folders and the peers."""
    program = compiled[1].hash()
    helped = for_two_servers(compiled[1]).hash()
    for role in ("client", "server"):
        place(role)
    monkeypatch.chdir(tmp_path)
    with (
        answering(tmp_path / "all", "server", my_facts("server", programs=[program, helped])) as server,
        answering(tmp_path / "all", "dealer", my_facts("dealer")) as dealer,
        answering(tmp_path / "all", "helper", my_facts("helper", programs=[helped])) as helper,
    ):
        where = ["--server", f"127.0.0.1:{server}", "--dealer", f"127.0.0.1:{dealer}"]

        def checks(role: str, *words) -> dict:
            files = [tmp_path / role / "compiled" / role, "--certs", tmp_path / role / "certs"]
            code, printed, _ = call("doctor", *files, *where, *words, "--format", "json")
            by_name = {check["name"]: check for check in json.loads(printed)["checks"]}
            assert code == 0, [check for check in by_name.values() if check["status"] == "bad"]
            return by_name

        own = checks("client")
        assert own["config"]["found"] == "client of no file: options and defaults"
        assert {"certificate", "artifacts", "server: network", "dealer: network"} <= set(own)
        assert own["server: programs"]["found"] == "1 of 1 known there"
        (file := tmp_path / "helper.toml").write_text(
            f'[session]\ntopology = "helper"\n[parties.helper]\naddress = "127.0.0.1:{helper}"\n'
        )
        assert "helper: network" in checks("client", "--config", file)
        file.write_text('[server]\nlisten = "127.0.0.1:0"\n')
        assert "dealer: network" in checks("server", "--config", file)


def test_the_command_ends_with_1_where_something_is_broken(place, call):
    good = place("dealer", addresses(dealer=free_port()) + "[dealer]\nworkers = 1\n")
    code, out, _ = call("doctor", "--config", good)
    assert (code, f"0 bad, {1 if slow() else 0} warning" in out) == (0, True)
    code, out, _ = call("doctor", "--config", good, "--party", "server", "--format", "json")
    assert code == 1
    report = json.loads(out)
    assert (report["good"], set(report["checks"][0])) == (False, {"name", "status", "found", "fix", "figures"})

    code, out, _ = call("doctor", "--config", place("dealer", "[session]\nspeed = 1\n"))
    assert code == 1
    assert "known in [session]" in " ".join(out.split())
