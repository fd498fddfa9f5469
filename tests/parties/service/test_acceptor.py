"""Connections that wait: who is let through, who waits, who has to leave."""

from __future__ import annotations

import socket

import pytest
from blindformer.parties.service.acceptor import HelloState, PendingConnections, look
from blindformer.tests.parties.service.clock import Clock
from hypothesis import given, settings
from hypothesis import strategies as st

HELLO = b"\x16\x03\x01\x00\x08" + b"8 bytes."


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
def test_what_is_not_tls_is_told(peers, data):
    ours, theirs = peers()
    theirs.send(data)
    waiting = PendingConnections(4, 10)
    visitor, _ = waiting.add(ours, "::1", 5)
    assert waiting.look(visitor) is HelloState.not_tls
    assert len(waiting) == 0
    assert theirs.recv(100) == b"\x15\x03\x03\x00\x02\x02\x46"  # a TLS alert: protocol version
    assert visitor.address == "[::1]:5"


def test_one_that_hangs_up_is_gone(peers):
    ours, theirs = peers()
    waiting = PendingConnections(4, 10)
    visitor, _ = waiting.add(ours, "a", 1)
    theirs.close()
    assert waiting.look(visitor) is HelloState.gone
    assert len(waiting) == 0


@given(data=st.binary(max_size=64))
@settings(max_examples=200)
def test_any_first_bytes_get_one_clear_answer(data):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.send(data)
        hello = look(ours)
        if not data:
            assert hello is HelloState.silent
        elif data[0] != 0x16:
            assert hello is HelloState.not_tls
        elif len(data) < 5:
            assert hello is HelloState.partial
        else:
            length = int.from_bytes(data[3:5], "big")
            expected = HelloState.ready if len(data) >= 5 + length else HelloState.partial
            assert hello is (expected if 0 < length <= 16384 else HelloState.not_tls)


def test_time_is_over_for_the_silent_and_for_the_slow(peers):
    clock = Clock(100.0)
    waiting = PendingConnections(4, 10, clock)
    silent, _ = waiting.add(peers()[0], "a", 1)
    clock.now += 6
    ours, theirs = peers()
    later, _ = waiting.add(ours, "a", 2)
    theirs.send(HELLO[:5])
    assert waiting.look(later) is HelloState.partial
    clock.now += 4
    assert waiting.expired() == [silent]
    assert waiting.partial == [later]
    clock.now += 6
    assert waiting.expired() == [later]
    assert len(waiting) == 0


def test_a_full_house_drops_the_oldest_of_whoever_holds_most(peers):
    waiting = PendingConnections(4, 10)
    honest, _ = waiting.add(peers()[0], "honest", 1)
    flood = [waiting.add(peers()[0], "flood", port)[0] for port in range(3)]
    another, dropped = waiting.add(peers()[0], "flood", 9)
    assert dropped is flood[0]
    third, dropped = waiting.add(peers()[0], "honest", 2)
    assert dropped is flood[1]
    assert {*waiting.close()} == {honest, flood[2], another, third}


def test_one_that_is_ready_is_dropped_last(peers):
    waiting = PendingConnections(2, 10)
    ours, theirs = peers()
    ready, _ = waiting.add(ours, "a", 1)
    theirs.send(HELLO)
    waiting.look(ready)
    silent, _ = waiting.add(peers()[0], "a", 2)
    assert waiting.add(peers()[0], "b", 3)[1] is silent
    assert waiting.ready == 1


def test_the_next_is_of_the_host_with_the_fewest_inside(peers):
    waiting = PendingConnections(8, 10)
    visitors = []
    for host in ("flood", "flood", "honest"):
        ours, theirs = peers()
        visitor, _ = waiting.add(ours, host, 1)
        theirs.send(HELLO)
        waiting.look(visitor)
        visitors.append(visitor)
    assert waiting.next({"flood": 5}) is visitors[2]
    assert waiting.next({"flood": 5}) is visitors[0]
    assert waiting.next({}) is visitors[1]
    assert waiting.next({}) is None
