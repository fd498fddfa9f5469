"""One suite for every transport: what a protocol may rely on."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
from blindformer.parties.transport.frames import error_message, send_error
from blindformer.protocols.channel import Channel
from blindformer.protocols.errors import (
    PeerDisagrees,
    PeerGone,
    PeerProtocolError,
    PeerRefused,
    PeerTimeout,
)
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import memory_pair


def send_until_it_fails(channel: Channel) -> None:
    """A socket notices at the second or third frame that nobody is there."""
    for _ in range(100):
        channel.send(bytes(1_000_000))


def test_is_a_channel_that_knows_its_peer(make_pair):
    server, client = make_pair()
    assert isinstance(server, Channel)
    assert (server.peer, client.peer) == ("client", "server")


def test_frames_arrive_in_order_whatever_their_size(make_pair, aside):
    server, client = make_pair()
    frames = [os.urandom(n) for n in (1, 0, 7, 8, 16375, 16376, 16377, 16384, 300_000, 0, 5)]
    sending = aside(lambda: [client.send(frame) for frame in frames])
    assert [bytes(server.recv(len(frame))) for frame in frames] == frames
    sending.result(PATIENCE)


@pytest.mark.parametrize(
    "data", [b"ab", bytearray(b"ab"), memoryview(b"ab"), np.arange(6, dtype=np.int64).reshape(2, 3), np.zeros((0, 3))]
)
def test_any_contiguous_buffer_can_be_sent(make_pair, data):
    server, client = make_pair()
    client.send(memoryview(data))
    assert bytes(server.recv(memoryview(data).nbytes)) == memoryview(data).tobytes()


def test_the_sender_may_reuse_its_buffer(make_pair):
    server, client = make_pair()
    data = bytearray(b"first")
    client.send(data)
    data[:] = b"later"
    assert server.recv(5) == b"first"


@pytest.mark.parametrize("sizes", [(20_000_000, 20_000_000), (20_000_000, 0), (0, 20_000_000), (3, 20_000_000)])
def test_exchange_of_20_megabytes_never_deadlocks(make_pair, aside, sizes):
    server, client = make_pair()
    up, down = (os.urandom(n) for n in sizes)
    there = aside(client.exchange, up, len(down))
    here = server.exchange(down, len(up))
    assert here == up
    assert there.result(PATIENCE) == down


def test_many_small_exchanges(make_pair, aside):
    server, client = make_pair()
    there = aside(lambda: [bytes(client.exchange(i.to_bytes(4, "big"), 4)) for i in range(500)])
    here = [bytes(server.exchange(i.to_bytes(4, "big"), 4)) for i in range(500)]
    assert here == there.result(PATIENCE) == [i.to_bytes(4, "big") for i in range(500)]


@pytest.mark.parametrize(("sent", "expected"), [(8, 9), (9, 8), (0, 1), (1, 0), (8, 10**15)])
def test_a_frame_of_another_size_is_an_error_before_it_is_an_allocation(make_pair, sent, expected):
    server, client = make_pair()
    client.send(bytes(sent))
    with pytest.raises(PeerProtocolError, match=f"client: sent a frame of {sent} bytes where {expected} were"):
        server.recv(expected)


def test_messages_and_tensors_are_not_confused(make_pair):
    server, client = make_pair()
    client.send_message({"hello": ["wörld", 1]})
    assert server.recv_message() == {"hello": ["wörld", 1]}
    client.send_message({"no": "error"})
    with pytest.raises(PeerProtocolError, match="message where a tensor frame"):
        server.recv(4)
    server.send(b"1234")
    with pytest.raises(PeerProtocolError, match="tensor frame where a message"):
        client.recv_message()


def test_a_message_too_large_is_refused(make_pair):
    server, client = make_pair()
    client.send_message({"a": "b" * 100})
    with pytest.raises(PeerProtocolError, match="at most 50"):
        server.recv_message(limit=50)


@pytest.mark.parametrize("expect", ["tensor", "message", "exchange"])
def test_an_error_message_is_raised_with_the_peers_name(make_pair, expect):
    server, client = make_pair()
    send_error(server, PeerGone("dealer", "closed the connection", "start it again"))
    server.close()
    receive = {
        "tensor": lambda: client.recv(100),
        "message": client.recv_message,
        "exchange": lambda: client.exchange(bytes(30_000_000), 100),
    }[expect]
    with pytest.raises(PeerGone, match="server: stopped and said: dealer: closed the connection; start it again;"):
        receive()


def test_what_a_peer_writes_is_short_and_printable(make_pair):
    server, client = make_pair()
    server.send_message({"error": {"kind": "SystemExit", "what": "\x1b[31m\nred\u202e" + "x" * 5000}})
    with pytest.raises(PeerRefused) as caught:
        client.recv(1)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 420
    server.send_message({"error": 3})
    with pytest.raises(PeerRefused, match="no reason given"):
        client.recv_message()


def test_error_kinds_survive_the_trip(make_pair):
    server, client = make_pair()
    server.send_message(error_message(PeerDisagrees("client", "has plan a", "b")))
    with pytest.raises(PeerDisagrees):
        client.recv_message()


def test_a_closed_peer_is_gone(make_pair):
    server, client = make_pair()
    client.send(b"last")
    client.close()
    client.close()
    assert server.recv(4) == b"last"
    with pytest.raises(PeerGone, match="client"):
        server.recv(4)
    with pytest.raises(PeerGone, match="client"):
        send_until_it_fails(server)
    with pytest.raises(PeerGone, match="this side"):
        client.send(b"x")
    with pytest.raises(PeerGone, match="this side"):
        client.recv(1)


def test_a_peer_that_closes_wakes_the_one_that_waits(make_pair, aside):
    server, client = make_pair()
    waiting = aside(server.recv, 1)
    time.sleep(0.1)
    client.close()
    with pytest.raises(PeerGone):
        waiting.result(PATIENCE)


def test_a_silent_peer_times_out_and_may_be_waited_for_again(make_pair):
    server, client = make_pair(timeout=0.2)
    start = time.monotonic()
    with pytest.raises(PeerTimeout, match=r"client: sent nothing for 0\.2 seconds; .*still runs"):
        server.recv(4)
    assert time.monotonic() - start > 0.15
    client.send(b"late")
    assert server.recv(4) == b"late"
    assert server.meter.seconds_waiting > 0.15


def test_meters_agree_to_the_byte(make_pair, aside):
    server, client = make_pair()
    before = client.meter.snapshot()
    there = aside(client.exchange, bytes(1_000_000), 3)
    server.exchange(bytes(3), 1_000_000)
    there.result(PATIENCE)
    client.send(b"")
    server.recv(0)
    server.send_message({"a": 1})
    client.recv_message()
    traffic = client.meter.since(before)
    assert (traffic.sent, traffic.received) == (1_000_000, 3 + len('{"a":1}'))
    assert (server.meter.sent, server.meter.received) == (traffic.received, traffic.sent)
    assert (traffic.messages_sent, traffic.messages_received) == (2, 2)
    assert (server.meter.messages_sent, server.meter.messages_received) == (2, 2)
    assert server.meter.overhead == client.meter.overhead
    assert traffic.overhead > 0


def test_memory_records_what_a_party_saw():
    seen: list[bytes] = []
    server, client = memory_pair(record={"server": seen})
    client.send(b"abc")
    server.send(b"secret of the client")
    server.recv(3)
    client.recv(20)
    assert seen == [b"abc"]
