"""A slow network, injected: frames arrive when it would deliver them, and nothing else about a channel changes."""

from __future__ import annotations

import time

import pytest
from blindformer.models.program.pricing import Network
from blindformer.parties.transport.shaping import Link, ShapedChannel, on_the_wire
from blindformer.protocols.channel import Channel
from blindformer.protocols.errors import PeerGone, PeerProtocolError, PeerTimeout
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import memory_pair

FREE = Network("free", 0.0, 1e15)
NOISE = bytes(range(256)) * 4096  # 1 MiB


def shaped(pair, network):
    return tuple(ShapedChannel(channel, network) for channel in pair)


# The arithmetic of a link, on a clock of its own.


def test_a_frame_takes_its_bytes_and_half_a_round_trip():
    link = Link(Network("", rtt=0.04, bandwidth=1e6))
    assert link.arrival(1.0, 1000) == pytest.approx(1.0 + 8 * on_the_wire(1000) / 1e6 + 0.02)


def test_frames_queue_for_the_wire_and_travel_together():
    link = Link(Network("", rtt=2.0, bandwidth=8e3))  # a byte a millisecond
    alone = on_the_wire(100) / 1e3
    arrivals = [link.arrival(5.0, 100) for _ in range(3)]
    assert arrivals == pytest.approx([5 + n * alone + 1.0 for n in (1, 2, 3)])
    assert link.arrival(99.0, 100) == pytest.approx(99 + alone + 1.0)  # an idle wire owes nothing


@pytest.mark.parametrize("size", [0, 1, 16376, 16377, 32768, 262144, 300_000, 1_000_001])
def test_bytes_on_the_wire_are_those_of_tls(certificates, aside, size):
    from ..conftest import connect

    server, client = connect("tls", certificates, 20)
    sent = aside(lambda: (client.send(b""), client.send(bytes(size))))
    server.recv(0)  # the handshake's bytes count with the first frame
    before = server.meter.snapshot()
    server.recv(size)
    sent.result()
    metered = server.meter.since(before)
    assert metered.received + metered.overhead == on_the_wire(size)
    server.close()
    client.close()


# A shaped channel is a channel.


def test_frames_messages_and_meter_are_those_of_the_channel(make_pair, aside):
    server, client = shaped(make_pair(), Network("", 0.002, 1e9))
    plain_server, plain_client = make_pair()
    assert isinstance(server, Channel)
    for a, b in ((server, client), (plain_server, plain_client)):
        other = aside(lambda b=b: (b.recv_message(), b.exchange(NOISE, 3), b.recv(0), b.send_message({"bye": True})))
        a.send_message({"query": 1})
        assert a.exchange(b"abc", len(NOISE)) == NOISE
        a.send(b"")
        assert a.recv_message() == {"bye": True}
        assert other.result()[:3] == ({"query": 1}, b"abc", b"")
    for one, plain in ((server, plain_server), (client, plain_client)):
        counted = ("sent", "received", "messages_sent", "messages_received")
        assert [getattr(one.meter, name) for name in counted] == [getattr(plain.meter, name) for name in counted]


def test_timeout_and_peer_are_the_channels():
    server, _ = shaped(memory_pair("server", "client", timeout=7), FREE)
    assert (server.peer, server.timeout) == ("client", 7)
    server.timeout = 0.01
    with pytest.raises(PeerTimeout, match=r"client: sent nothing for 0\.01"):
        server.recv(4)


def test_errors_of_the_peer_pass(make_pair, aside):
    server, client = shaped(make_pair(), FREE)
    client.send_message({"error": {"kind": "PeerProtocolError", "what": "no such layer"}})
    with pytest.raises(PeerProtocolError, match="no such layer"):
        server.recv(1000)
    sent = aside(client.send, bytes(9))
    with pytest.raises(PeerProtocolError, match="frame of"):
        server.recv(10)
    sent.result()


def test_an_interrupt_reaches_who_waits_for_an_arrival(aside):
    server, client = shaped(memory_pair(timeout=60), Network("moon", 100.0, 1e9))
    client.send(b"hello")
    waiting = aside(server.recv, 5)
    while not server._stamps["received"]:
        time.sleep(0.001)
    server.interrupt()
    with pytest.raises(PeerGone, match="this side"):
        waiting.result(PATIENCE)


def test_a_frame_that_takes_longer_than_the_timeout_is_an_error():
    server, client = shaped(memory_pair(timeout=5), Network("slow", 0.0, 8e3))
    client.send(bytes(10_000))
    with pytest.raises(PeerTimeout, match="10 seconds on this network"):
        server.recv(10_000)


# And it takes its time.


def test_the_sender_does_not_wait_and_the_receiver_does():
    server, client = shaped(memory_pair(), Network("", rtt=0.6, bandwidth=8e6))
    started = time.monotonic()
    client.send(bytes(100_000))  # 0.1 s on the wire
    handed_over = time.monotonic()
    server.recv(100_000)
    assert time.monotonic() - started >= 0.4
    assert time.monotonic() - handed_over > 0.1, "the receiver waited when the sender was done"
    assert server.meter.seconds_waiting > 0


def test_frames_in_flight_and_both_directions_overlap(aside):
    """Twenty frames and a second of round trip: one after the other they would take ten seconds."""
    server, client = shaped(memory_pair(), Network("", rtt=1.0, bandwidth=1e9))
    started = time.monotonic()
    other = aside(lambda: [client.exchange(b"b" * 100, 100) for _ in range(1)])
    for _ in range(20):
        server.send(b"a" * 100)
    assert server.recv(100) == b"b" * 100
    other.result()
    for _ in range(19):
        client.recv(100)
    assert 0.5 <= time.monotonic() - started < 9
