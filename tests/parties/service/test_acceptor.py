"""Connections that wait: who is let through, who waits, who has to leave."""

from __future__ import annotations

import itertools
import socket

import pytest
from blindformer.parties.addresses import network_of
from blindformer.parties.service import acceptor
from blindformer.parties.service.acceptor import GRACE_SECONDS, HelloState, PendingConnections, look
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


@pytest.fixture
def join(peers):
    """`join(waiting, host)` gives one more that waits; `says`: what it has sent."""
    port = itertools.count(1)

    def make(waiting, host, says=b""):
        ours, theirs = peers()
        theirs.send(says)
        pending, evicted = waiting.add(ours, host, next(port))
        if says:
            waiting.look(pending)
        return pending, evicted

    return make


def test_a_full_house_drops_one_of_whoever_holds_most(join):
    waiting = PendingConnections(4, 10)
    honest, _ = join(waiting, "honest")
    flood = [join(waiting, "flood")[0] for _ in range(3)]
    another, dropped = join(waiting, "flood")
    assert dropped in flood
    third, again = join(waiting, "honest")
    assert again in {*flood, another} - {dropped}
    assert {*waiting.close()} == {honest, *flood, another, third} - {dropped, again}


def test_one_that_is_ready_is_dropped_last(join):
    waiting = PendingConnections(2, 10)
    join(waiting, "a", HELLO)
    silent, _ = join(waiting, "a")
    assert join(waiting, "b")[1] is silent
    assert waiting.ready == 1


def test_the_only_connection_of_a_network_is_safe_while_it_is_new(join):
    """So a newcomer has the time to send its hello, however many come after it; they wait outside."""
    clock = Clock(100.0)
    waiting = PendingConnections(2, 10, clock)
    old, _ = join(waiting, "a", HELLO)
    clock.now += GRACE_SECONDS
    silent, _ = join(waiting, "b")
    assert waiting.has_room
    newest, dropped = join(waiting, "c")
    assert dropped is old
    assert not waiting.has_room
    clock.now += GRACE_SECONDS
    assert waiting.has_room
    assert join(waiting, "d")[1] in (silent, newest)


def test_the_machines_of_one_ipv6_network_are_one_peer(join):
    waiting = PendingConnections(3, 10)
    flood = [join(waiting, f"2001:db8::{number}")[0] for number in (1, 2)]
    join(waiting, "2001:db8:0:1::1")
    _, dropped = join(waiting, "2001:db8:0:2::1")
    assert dropped in flood
    assert [network_of(host) for host in ("::ffff:10.0.0.1", "fe80::1%eth0", "10.0.0.2")] == [
        "10.0.0.1", "fe80::/64", "10.0.0.2",
    ]  # fmt: skip


def test_the_next_is_of_the_host_with_the_fewest_inside(join):
    waiting = PendingConnections(8, 10)
    *flood, honest = (join(waiting, host, HELLO)[0] for host in ("flood", "flood", "honest"))
    assert waiting.next({"flood": 5}) is honest
    assert {waiting.next({"flood": 5}), waiting.next({})} == {*flood}
    assert waiting.next({}) is None


def test_each_network_has_one_lot(join):
    """One that holds 20 connections does not draw before one that holds a single one."""
    honest = 0
    for _ in range(200):
        waiting = PendingConnections(32, 10)
        for _ in range(20):
            join(waiting, "flood", HELLO)
        mine, _ = join(waiting, "honest", HELLO)
        honest += waiting.next({}) is mine
    assert 50 < honest < 150


def test_who_has_wasted_a_handshake_comes_after_who_has_not(join):
    waiting = PendingConnections(4, 10)
    slow, honest = (join(waiting, host, HELLO)[0] for host in ("slow", "honest"))
    waiting.note("slow", introduced=False)
    assert [waiting.next({}), waiting.next({})] == [honest, slow]
    waiting.note("slow", introduced=True)  # which is forgiven
    slow, _ = join(waiting, "slow", HELLO)
    waiting.note("honest", introduced=False)
    join(waiting, "honest", HELLO)
    assert waiting.next({}) is slow


def test_no_more_networks_are_remembered_than_may_be(monkeypatch):
    monkeypatch.setattr(acceptor, "MOST_WASTEFUL", 3)
    waiting = PendingConnections(4, 10)
    for number in range(5):
        waiting.note(f"10.0.0.{number}", introduced=False)
    assert list(waiting._wasted) == ["10.0.0.2", "10.0.0.3", "10.0.0.4"]
