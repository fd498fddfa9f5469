"""One address of several replicas: all of a session meet at one, and nobody is sent to a stranger."""

from __future__ import annotations

import json
import os
import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from blindformer.parties.addresses import ReplicatedAddress
from blindformer.parties.certificates.issuing import make_certificates
from blindformer.parties.certificates.tls_folder import client_context, server_context
from blindformer.parties.config import load_settings
from blindformer.parties.replicas.front import ServerFront, as_toml
from blindformer.parties.service.admission import Admission, ServiceLimits
from blindformer.parties.session import rendezvous_two
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.parties.session.rendezvous_two import introduce, new_session
from blindformer.parties.transport.handshake import Hello, answer_hello
from blindformer.parties.transport.tls import Listener, listen
from blindformer.protocols.errors import PeerProtocolError, PeerRefused

HELLO = Hello(blindformer="0", role="client", program="ab" * 32, plan="", protocol="beaver", session="ef" * 16)


@pytest.fixture
def front(tmp_path: Path) -> ServerFront:
    """Only what chooses; no cluster and no service."""
    bare_front = object.__new__(ServerFront)
    bare_front.ready_file, bare_front.assigned = tmp_path / "replicas.json", tmp_path / "sessions"
    bare_front.assigned.mkdir()
    return bare_front


def test_all_who_come_to_a_session_meet_at_one_replica(front):
    front.ready_file.write_text(json.dumps({"a:1": 0, "b:1": 0}))
    first = {session: front._choose(session) for session in (new_session() for _ in range(40))}
    front.ready_file.write_text(json.dumps({"a:1": 0, "b:1": 0, "c:1": 0}))
    assert {session: front._choose(session) for session in first} == first
    assert set(first.values()) == {"a:1", "b:1"}


def test_most_go_to_who_has_fewer_sessions_and_not_all(front):
    front.ready_file.write_text(json.dumps({"busy:1": 30, "idle:1": 2}))
    choices = Counter(front._choose(new_session()) for _ in range(400))
    assert 250 < choices["idle:1"] < 350, "three of four, by lot"


def test_where_no_replica_is_ready_one_is_told_when_to_come_back(front):
    with pytest.raises(SlotsBusy, match="no replica is ready"):
        front._choose(new_session())
    front.ready_file.write_text("{}")
    with pytest.raises(SlotsBusy, match="no replica is ready"):
        front._choose(new_session())


def test_a_front_outlives_what_its_visitors_remove_and_a_file_that_is_broken(front, tmp_path, monkeypatch):
    """What a supervisor does every turn, and on SIGHUP, while children come and go."""
    ended, orders, logged, file = [1], [], [], tmp_path / "blindformer.toml"
    file.write_text("[server]\nreplicas = 2\n")
    front.settings, front.timeout, front._swept = load_settings(file), 1.0, 0.0
    front._order, front._alive, front._dying = {"number": 0, "replicas": 2}, {}, {}
    front._admission = Admission(ServiceLimits())
    front._driver = SimpleNamespace(poll=lambda: 1)
    front._start = lambda: ended.clear() or SimpleNamespace(poll=lambda: None)
    front.log = SimpleNamespace(error=lambda event, what: logged.append(event))
    front._send_order = lambda: orders.append((front._order["number"], front._order["replicas"]))
    old, gone = front.assigned / "ab", front.assigned / "gone"
    for path in (old, gone):
        path.write_text("a:1")
        os.utime(path, (0, 0))
    look = Path.stat
    monkeypatch.setattr(Path, "stat", lambda path, **how: look(path.with_name("none") if path == gone else path, **how))
    front.on_turn()
    assert (ended, old.exists(), front.gauges()["replicas"]) == ([], False, 0)
    front.on_turn()
    file.write_text("[server]\nreplicas = 5\n")
    front.on_renewal()
    file.write_text("[server]\nreplicas = many\n")
    front.on_renewal()
    assert orders == [(1, 5), (2, 5)]
    assert logged == ["settings-kept"]


def test_a_replica_has_the_settings_that_it_was_given_but_where_it_listens(tmp_path):
    file = tmp_path / "blindformer.toml"
    file.write_text(
        '[parties.dealer]\naddress = "dealer.example:1"\n[server]\nfolder = "m\\u00fcll \\"x\\""\nsessions = 7\n'
        'replicas = 3\nqueries_each = 5\nstate = "state"\n[session]\ntimeout = 3.5\n'
        '[server.adapters]\nlaw = "law"\n"law v2.1 ⚖" = "m\u00fcll/law"\n"\U0001f600" = "moods"\n'
    )
    settings = load_settings(file)
    (tmp_path / "other").mkdir()
    copy = tmp_path / "other" / "copy.toml"
    copy.write_text(as_toml(settings, "server"))
    copied = load_settings(copy)
    assert copied.server == settings.server.model_copy(update={"replicas": None})
    assert (copied.session, copied.parties, copied.certificates) == (
        *(settings.session, settings.parties, settings.certificates),
    )
    assert copied.shared_hash() == settings.shared_hash()


def says(listener: Listener, reply: dict | None, aside) -> None:
    """Answers one hello: with `reply`, or as a server does."""

    def answer() -> None:
        channel = listener.accept(10.0, ("client",))
        if reply is None:
            answer_hello(channel, lambda theirs: theirs.model_copy(update={"role": "server"}), ("client",))
        else:
            channel.recv_message()
            channel.send_message(reply)

    aside(answer)


def listening(folder: Path) -> Listener:
    return listen("127.0.0.1", 0, server_context(folder, "server"))


def meet(certificates: Path, listener: Listener, address: tuple[str, int] | None = None) -> Hello:
    context = client_context(certificates, "client")
    channel, theirs = introduce(address or listener.address, context, "server", HELLO, 10.0)
    channel.close()
    return theirs


def test_a_session_goes_where_it_is_told_to(certificates, aside):
    with listening(certificates) as front, listening(certificates) as replica:
        says(front, {"moved": "{}:{}".format(*replica.address)}, aside)
        says(replica, None, aside)
        assert meet(certificates, front).role == "server"


@pytest.mark.parametrize("where", ["nowhere", "127.0.0.1:0x", "::"])
def test_what_is_no_address_is_the_fault_of_who_said_it(certificates, aside, where):
    with listening(certificates) as front:
        says(front, {"moved": where}, aside)
        with pytest.raises(PeerProtocolError, match=r"said that it has moved to .*, where it is not"):
            meet(certificates, front)


def test_nobody_is_sent_on_twice(certificates, aside):
    with listening(certificates) as front, listening(certificates) as other:
        for listener in (front, other):
            says(listener, {"moved": "{}:{}".format(*other.address)}, aside)
        with pytest.raises(PeerProtocolError, match="said that it has moved"):
            meet(certificates, front)


@pytest.fixture
def dialled(monkeypatch) -> list[str]:
    """Hosts that are dialled; of those that somebody was sent to, none answers."""
    hosts, dial = [], rendezvous_two.dial

    def noting(host, *rest, **options):
        hosts.append(host)
        if len(hosts) > 1:
            raise PeerRefused("server", "is not asked here", "")
        return dial(host, *rest, **options)

    monkeypatch.setattr(rendezvous_two, "dial", noting)
    return hosts


INSIDE = ["10.9.8.7", "169.254.169.254", "[fe80::1]", "intranet.example", "localhost.example"]


@pytest.mark.parametrize("host", INSIDE)
def test_a_front_that_lies_cannot_have_a_session_dial_what_it_likes(certificates, aside, dialled, host):
    with listening(certificates) as front:
        says(front, {"moved": f"{host}:443"}, aside)
        with pytest.raises(PeerProtocolError, match=r"which is not its host; .* parties.server.replicas_at"):
            meet(certificates, front)
    assert dialled == ["127.0.0.1"]


@pytest.mark.parametrize("host", INSIDE)
def test_where_replicas_may_be_is_a_setting(certificates, aside, dialled, tmp_path, host):
    file = tmp_path / "blindformer.toml"
    with listening(certificates) as front:
        places = ["10.9.0.0/16", "169.254.169.254", "fe80::/64", "intranet.example", "localhost.example"]
        address = '"{}:{}"'.format(*front.address)
        file.write_text(f"[parties.server]\naddress = {address}\nreplicas_at = {json.dumps(places)}\n")
        says(front, {"moved": f"{host}:443"}, aside)
        with pytest.raises(PeerRefused, match="is not asked here"):
            meet(certificates, front, load_settings(file).address("server"))
    assert dialled[1:] == [host.strip("[]")]


def test_a_machine_has_all_of_its_own_addresses():
    """A cluster on this machine may name its replicas by another address than loopback."""
    own = {one.address for of in psutil.net_if_addrs().values() for one in of if one.family == socket.AF_INET}
    assert all(ReplicatedAddress("localhost", 1).covers(address) for address in own)
    assert not ReplicatedAddress("localhost", 1).covers("192.0.2.1")


def test_whoever_is_sent_to_shows_a_certificate_of_the_same_deployment(certificates, aside, tmp_path):
    make_certificates(tmp_path / "strangers")
    with listening(certificates) as front, listening(tmp_path / "strangers") as stranger:
        says(front, {"moved": "{}:{}".format(*stranger.address)}, aside)
        says(stranger, None, aside)
        with pytest.raises(PeerRefused, match="certificate"):
            meet(certificates, front)
