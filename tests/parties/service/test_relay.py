"""The server's two processes of one session with a helper: they find each other, and pass on shares and answers."""

from __future__ import annotations

import threading

import pytest
from blindformer.models.program.two_server import for_two_servers, owner_traffic
from blindformer.parties.service.helper import OWNER, SESSION, Rendezvous, relay, serve_owner
from blindformer.parties.session.messages import LimitReached
from blindformer.protocols.errors import (
    BlindformerError,
    PeerError,
    PeerGone,
    PeerProtocolError,
    PeerRefused,
    PeerTimeout,
)
from blindformer.tests.models.conftest import make
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import memory_pair

SESSION_ID = "5e" * 16


@pytest.fixture(scope="module")
def item():
    """A classifier of two layers, compiled."""
    return make("bert-labels", "fast")


@pytest.fixture
def rendezvous(tmp_path_factory):
    return Rendezvous(tmp_path_factory.mktemp("r"))


@pytest.mark.parametrize("first", [OWNER, SESSION])
def test_two_processes_of_one_session_meet_whoever_comes_first(rendezvous, aside, first):
    second = {OWNER: SESSION, SESSION: OWNER}[first]
    waiting = aside(rendezvous.meet, SESSION_ID, first, 30)
    while not list(rendezvous.folder.iterdir()):
        threading.Event().wait(0.01)
    channels = {second: rendezvous.meet(SESSION_ID, second, 30), first: waiting.result(PATIENCE)}
    channels[OWNER].send_message({"hello": 1})
    assert channels[SESSION].recv_message() == {"hello": 1}
    assert (channels[OWNER].peer, channels[SESSION].peer) == ("server", "client")
    assert list(rendezvous.folder.iterdir()) == []


def test_both_may_come_at_once(rendezvous, aside):
    for number in range(40):
        session = f"{number:032x}"
        pair = [aside(rendezvous.meet, session, role, 30) for role in (OWNER, SESSION)]
        one, other = (each.result(PATIENCE) for each in pair)
        one.send_message({"n": number})
        assert other.recv_message() == {"n": number}
        one.close()
        other.close()


def test_who_does_not_come_is_named(rendezvous):
    with pytest.raises(PeerTimeout, match=r"helper: did not come to the server in 0\.05 seconds"):
        rendezvous.meet(SESSION_ID, OWNER, 0.05)
    assert list(rendezvous.folder.iterdir()) == []


def test_who_leaves_while_the_other_is_waited_for_is_missed(rendezvous):
    def gone() -> None:
        raise PeerGone("client", "closed the connection", "open a new session")

    with pytest.raises(PeerGone, match="client: closed the connection"):
        rendezvous.meet(SESSION_ID, OWNER, 600, gone)
    assert list(rendezvous.folder.iterdir()) == []


def test_a_session_has_one_owner(rendezvous, aside):
    first = aside(rendezvous.meet, SESSION_ID, OWNER, 30)
    while not list(rendezvous.folder.iterdir()):
        threading.Event().wait(0.01)
    with pytest.raises(PeerError):
        rendezvous.meet(SESSION_ID, OWNER, 30)
    with pytest.raises(PeerRefused, match="is in this session already"):
        first.result(PATIENCE)


def test_the_owner_s_process_passes_on_shares_answers_and_reasons(item, rendezvous, aside):
    moved = for_two_servers(item.compiled.program)
    traffic = owner_traffic(moved)
    server, owner = memory_pair("server", "client", 30)
    done = aside(serve_owner, server, moved, rendezvous, SESSION_ID, 30.0, 30.0)
    session = rendezvous.meet(SESSION_ID, SESSION, 30)
    assert owner.recv_message() == {"open": True}
    for number in range(2):
        owner.send_message({"query": number})
        owner.send(bytes([number]) * traffic.to_server)
        assert session.recv_message() == {"query": number}
        assert session.recv(traffic.to_server) == bytes([number]) * traffic.to_server
        session.send_message({"answer": number})
        session.send(bytes([number + 5]) * traffic.from_each)
        assert owner.recv_message() == {"answer": number}
        assert owner.recv(traffic.from_each) == bytes([number + 5]) * traffic.from_each
    owner.send_message({"bye": True})
    assert done.result(PATIENCE) == 2


def test_the_owner_s_process_counts_before_it_takes_shares(item, aside):
    """Once for a query, however often it is asked for; and shares of one that was not counted are refused."""
    moved = for_two_servers(item.compiled.program)
    traffic = owner_traffic(moved)
    server, owner = memory_pair("server", "client", 30)
    link, session = memory_pair("server", "server", 30)
    asked = []

    def count(tokens: int) -> None:
        asked.append(tokens)
        if len(asked) > 1:
            raise LimitReached("server", 1, 3600.0, 60.0)

    done = aside(relay, server, link, moved, 30.0, count)
    for _ in range(2):
        owner.send_message({"count": {"query": 0}})
        assert owner.recv_message() == {"counted": 0}
    assert len(asked) == 1
    owner.send_message({"query": 0})
    owner.send(bytes(traffic.to_server))
    session.recv_message()
    session.recv(traffic.to_server)
    session.send_message({"answer": 0})
    session.send(bytes(traffic.from_each))
    owner.recv_message()
    owner.recv(traffic.from_each)
    owner.send_message({"count": {"query": 1}})
    assert owner.recv_message() == {"limit": 1, "period": 3600.0, "seconds": 60.0}
    owner.send_message({"query": 1})
    with pytest.raises(PeerProtocolError, match="sent shares of a query that it had not counted"):
        owner.recv_message()
    with pytest.raises(PeerProtocolError):
        done.result(PATIENCE)


def test_the_owner_hears_why_the_session_s_process_ended(item, aside):
    moved = for_two_servers(item.compiled.program)
    server, owner = memory_pair("server", "client", 30)
    link, session = memory_pair("server", "server", 30)
    done = aside(relay, server, link, moved, 30.0)
    owner.send_message({"query": 0})
    owner.send(bytes(owner_traffic(moved).to_server))
    session.send_message({"error": {"kind": "PeerGone", "what": "helper: closed the connection; see its message"}})
    with pytest.raises(PeerGone, match="stopped and said: helper: closed the connection; see its message"):
        owner.recv_message()
    with pytest.raises(PeerGone):
        done.result(PATIENCE)


def test_the_session_s_process_hears_that_the_owner_left(item, aside):
    server, owner = memory_pair("server", "client", 30)
    link, session = memory_pair("server", "client", 30)
    done = aside(relay, server, link, for_two_servers(item.compiled.program), 30.0)
    owner.close()
    with pytest.raises(PeerGone, match="closed the connection"):
        session.recv_message()
    with pytest.raises(BlindformerError):
        done.result(PATIENCE)


ABSENT = [*({"part": part} for part in ("1@64", "", 8, ["8@64"], {})), {"part": "8@64", "revealed": [0, 1]}]


@pytest.mark.parametrize("what", ABSENT)
def test_an_owner_that_names_a_pass_that_is_not_there_is_refused(item, what):
    owner, owner_end = memory_pair("server", "client", 5)
    session, _ = memory_pair("client", "server", 5)
    owner_end.send_message({"query": 0, **what})
    program = for_two_servers(item.compiled.program)
    with pytest.raises(PeerProtocolError, match="has no place here"):
        relay(owner, session, program.model_copy(update={"parts": {"8@64": program}}))
