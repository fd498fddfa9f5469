"""The lobby: who is let through, who waits, who has to leave."""

from __future__ import annotations

import socket

import pytest
from blindformer.parties.service.pending import HelloState, PendingConnections, look
from hypothesis import given, settings
from hypothesis import strategies as st

HELLO = b"\x16\x03\x01\x00\x08" + b"8 bytes."


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def peers():
    """`peers()` gives (our end, the peer's end) of a connection."""
    opened = []

    def make():
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        opened.extend((ours, theirs))
        return ours, theirs

    yield make
    for sock in opened:
        sock.close()


def test_a_whole_hello_is_ready_and_stays_in_the_socket(peers):
    ours, theirs = peers()
    assert look(ours) is HelloState.silent
    for number in range(len(HELLO)):
        theirs.send(HELLO[number : number + 1])
        assert look(ours) is (HelloState.ready if number == len(HELLO) - 1 else HelloState.partial)
    assert ours.recv(100) == HELLO


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"\x15\x03\x03\x00\x02\x02\x46", b"J\x00", b"\x16\x03\x01\xff\xff"]
)
def test_what_is_not_tls_is_a_stranger_and_is_told(peers, data):
    ours, theirs = peers()
    theirs.send(data)
    lobby = PendingConnections(4, 10)
    visitor, _ = lobby.enter(ours, "::1", 5)
    assert lobby.look(visitor) is HelloState.stranger
    assert len(lobby) == 0
    assert theirs.recv(100) == b"\x15\x03\x03\x00\x02\x02\x46"  # a TLS alert: protocol version
    assert visitor.address == "[::1]:5"


def test_one_that_hangs_up_is_gone(peers):
    ours, theirs = peers()
    lobby = PendingConnections(4, 10)
    visitor, _ = lobby.enter(ours, "a", 1)
    theirs.close()
    assert lobby.look(visitor) is HelloState.gone
    assert len(lobby) == 0


@given(data=st.binary(max_size=64))
@settings(max_examples=200)
def test_any_first_bytes_get_one_clear_answer(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(data)
        sight = look(ours)
        if not data:
            assert sight is HelloState.silent
        elif data[0] != 0x16:
            assert sight is HelloState.stranger
        elif len(data) < 5:
            assert sight is HelloState.partial
        else:
            length = int.from_bytes(data[3:5], "big")
            expected = HelloState.ready if len(data) >= 5 + length else HelloState.partial
            assert sight is (expected if 0 < length <= 16384 else HelloState.stranger)


def test_time_is_over_for_the_silent_and_for_the_slow(peers, clock):
    lobby = PendingConnections(4, 10, clock)
    silent, _ = lobby.enter(peers()[0], "a", 1)
    clock.now += 6
    ours, theirs = peers()
    later, _ = lobby.enter(ours, "a", 2)
    theirs.send(HELLO[:5])
    assert lobby.look(later) is HelloState.partial
    clock.now += 4
    assert lobby.expired() == [silent]
    assert lobby.partial == [later]
    clock.now += 6
    assert lobby.expired() == [later]
    assert len(lobby) == 0


def test_a_full_lobby_drops_the_oldest_of_whoever_holds_most(peers):
    lobby = PendingConnections(4, 10)
    honest, _ = lobby.enter(peers()[0], "honest", 1)
    flood = [lobby.enter(peers()[0], "flood", port)[0] for port in range(3)]
    another, dropped = lobby.enter(peers()[0], "flood", 9)
    assert dropped is flood[0]
    third, dropped = lobby.enter(peers()[0], "honest", 2)
    assert dropped is flood[1]
    assert {*lobby.close()} == {honest, flood[2], another, third}


def test_one_that_is_ready_is_dropped_last(peers):
    lobby = PendingConnections(2, 10)
    ours, theirs = peers()
    ready, _ = lobby.enter(ours, "a", 1)
    theirs.send(HELLO)
    lobby.look(ready)
    silent, _ = lobby.enter(peers()[0], "a", 2)
    assert lobby.enter(peers()[0], "b", 3)[1] is silent
    assert lobby.ready == 1


def test_the_next_is_of_the_host_with_the_fewest_inside(peers):
    lobby = PendingConnections(8, 10)
    visitors = []
    for host in ("flood", "flood", "honest"):
        ours, theirs = peers()
        visitor, _ = lobby.enter(ours, host, 1)
        theirs.send(HELLO)
        lobby.look(visitor)
        visitors.append(visitor)
    assert lobby.next({"flood": 5}) is visitors[2]
    assert lobby.next({"flood": 5}) is visitors[0]
    assert lobby.next({}) is visitors[1]
    assert lobby.next({}) is None
