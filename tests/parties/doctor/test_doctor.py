"""The doctor finds each fault of a deployment and says in one line what to do; in a good one it finds none."""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import socket
import threading
from pathlib import Path

import pytest
from blindformer.levels import slow
from blindformer.models.artifacts import save
from blindformer.models.loading.load import load
from blindformer.models.program.two_server import for_two_servers
from blindformer.parties.certificates import issuing as made
from blindformer.parties.certificates.contexts import server_context
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.revocation import revoke
from blindformer.parties.doctor import sessions as session_checks
from blindformer.parties.doctor.examine import examine
from blindformer.parties.doctor.sessions import peers
from blindformer.parties.local.compare import compile_text
from blindformer.parties.session.spool import Spool
from blindformer.parties.session.spool.ledger import Entry
from blindformer.parties.transport.frames import say_why
from blindformer.parties.transport.probe import PeerFacts, answer_probe, my_facts
from blindformer.parties.transport.tls import listen
from blindformer.protocols.errors import PeerError
from blindformer.tests.patience import PATIENCE


class Skewed:
    """The channel of a party whose clock is `seconds` ahead."""

    def __init__(self, channel, seconds: float) -> None:
        self.channel, self.seconds = channel, seconds

    def send_message(self, message: dict) -> None:
        if "probe" in message:
            message["probe"]["time"] += self.seconds
        self.channel.send_message(message)

    def __getattr__(self, name: str):
        return getattr(self.channel, name)


@contextlib.contextmanager
def answering(folder: Path, role: str, facts: PeerFacts, ahead: float = 0.0):
    """A party that does nothing but answer probes; its port."""
    with listen("127.0.0.1", 0, server_context(folder, role), timeout=PATIENCE) as listener:
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                with contextlib.suppress(PeerError), listener.accept(0.1, refused=lambda error: None) as channel:
                    try:
                        answer_probe(Skewed(channel, ahead), channel.recv_message(), facts)
                    except PeerError as error:
                        say_why(channel, error)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.address[1]
        stop.set()
        thread.join(PATIENCE)


@pytest.fixture(scope="module")
def compiled(tiny_classifier, tmp_path_factory):
    loaded = load(tiny_classifier)
    whole = compile_text(loaded, 8, texts=["how is my password ?", "not good , bad !"])
    return save(whole, tmp_path_factory.mktemp("compiled"), loaded), whole.program


@pytest.fixture
def place(tmp_path, compiled):
    """`place(role, text)`: this party's own folder, with nothing but what it may hold, and its blindformer.toml."""
    make_certificates(tmp_path / "all", days=90)

    def make(role: str, text: str = "") -> Path:
        here = tmp_path / role
        (here / "certs").mkdir(parents=True, exist_ok=True)
        for name in ("ca.pem", f"{role}.pem", f"{role}.key"):
            shutil.copy(tmp_path / "all" / name, here / "certs" / name)
        if role != "dealer":
            shutil.copytree(compiled[0] / role, here / "compiled" / role, dirs_exist_ok=True)
        (here / "blindformer.toml").write_text(text)
        return here / "blindformer.toml"

    return make


def found(path: Path, role: str | None = None) -> dict:
    """Checks by name; none is met twice."""
    checks = list(examine(path, role, seconds=0.2))
    by_name = {check.name: check for check in checks}
    assert len(by_name) == len(checks)
    assert all(check.fix for check in checks if check.status != "good")
    return by_name


def to_fix(checks: dict) -> dict:
    return {name: check.found for name, check in checks.items() if name != "kernels" and check.status != "good"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def addresses(**ports: int) -> str:
    return "".join(f'[parties.{role}]\naddress = "127.0.0.1:{port}"\n' for role, port in ports.items())


# A deployment with nothing wrong.


def test_a_good_client_finds_nothing_to_fix(place, compiled, tmp_path):
    program = compiled[1].hash()
    with (
        answering(tmp_path / "all", "server", my_facts("server", programs=[program, "ab" * 32])) as server,
        answering(tmp_path / "all", "dealer", my_facts("dealer")) as dealer,
    ):
        path = place("client", addresses(server=server, dealer=dealer) + '[client]\ncache = "cache"\nspool = "spool"\n')
        checks = found(path)
    assert to_fix(checks) == {}
    assert {"config", "certificate", "dates", "cores", "artifacts", "spool", "cache"} <= set(checks)
    assert {"reached", "version", "clock", "network"} <= {name.partition(": ")[2] for name in checks}
    assert checks["server: programs"].found == "1 of 1 known there"
    assert checks["dealer: network"].figures["rtt_s"] > 0
    assert checks["server: network"].figures["up"] > 0


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


def test_who_dials_whom():
    assert peers("client", "dealer") == ("server", "dealer")
    assert peers("server", "dealer") == ("dealer",)
    assert peers("dealer", "dealer") == ()
    assert peers("client", "helper") == ("server", "helper")
    assert peers("helper", "helper") == ("server", "dealer")


# Configuration and certificates.


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
    told = found(tmp_path / "dealer" / "blindformer.toml", "dealer")
    assert told["keys"].status == "warning"
    assert "server.key" in told["keys"].found


def test_a_key_that_others_can_read_and_files_that_do_not_belong_together(place, tmp_path):
    path, certs = place("dealer"), tmp_path / "dealer" / "certs"
    (certs / "dealer.key").chmod(0o644)
    check = found(path)["certificate"]
    assert (check.status, "chmod 600" in check.fix) == ("bad", True)
    make_certificates(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "dealer.key", certs / "dealer.key")
    assert "does not belong to" in found(path)["certificate"].found
    shutil.copy(tmp_path / "other" / "ca.pem", certs / "ca.pem")
    assert "is not from the CA" in found(path)["certificate"].found
    (certs / "dealer.pem").unlink()
    assert "is missing" in found(path)["certificate"].found
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
    (certs / "revoked.pem").write_text("nonsense")
    assert "is not one list of revoked certificates" in found(path)["certificate"].found


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


def test_a_ledger_a_damaged_one_and_a_spool_that_cannot_be_written(place, tmp_path):
    path = place("client", addresses(server=free_port(), dealer=free_port()) + '[client]\nspool = "spool"\n')
    assert "ledger" not in found(path)  # nothing was made ahead yet
    ledger = Spool(tmp_path / "client" / "spool").ledger
    ledger.open_session("ab" * 16, "program", "weights", "")
    ledger.add(Entry("ab" * 16, 0, b"k" * 32, None, 0, None))
    assert found(path)["ledger"].found == "correlations made ahead and ready: 1"
    ledger.path.write_bytes(b"nonsense" * 1000)
    assert found(path)["ledger"].status == "bad"
    (tmp_path / "file").write_text("")  # no folder can be made in a file
    path = place("client", addresses(server=free_port(), dealer=free_port()) + '[client]\nspool = "../file/spool"\n')
    assert found(path)["spool"].status == "bad"


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
    monkeypatch.setattr(session_checks, "ANSWER_SECONDS", 0.5)
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


@pytest.mark.parametrize(("ahead", "said"), [(300.0, "ahead of"), (-300.0, "behind")])
def test_a_peer_whose_clock_is_off(place, tmp_path, ahead, said):
    with answering(tmp_path / "all", "dealer", my_facts("dealer"), ahead) as dealer:
        text = addresses(server=free_port(), dealer=dealer)
        check = found(place("server", text))["dealer: clock"]
    assert check.status == "warning"
    assert said in check.found
    assert abs(check.figures["clock_s"] - ahead) < 30


# The command.


def test_the_command_ends_with_1_where_something_is_broken(place, call):
    good = place("dealer", addresses(dealer=free_port()) + "[dealer]\nworkers = 1\n")
    code, out, _ = call("doctor", "--config", good)
    assert (code, f"0 bad, {1 if slow() else 0} warning" in out) == (0, True)
    code, out, _ = call("doctor", "--config", good, "--party", "server", "--format", "json")
    assert code == 1
    told = json.loads(out)
    assert (told["good"], set(told["checks"][0])) == (False, {"name", "status", "found", "fix", "figures"})

    code, out, _ = call("doctor", "--config", place("dealer", "[session]\nspeed = 1\n"))
    assert code == 1
    assert "known in [session]" in " ".join(out.split())
