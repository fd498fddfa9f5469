"""A probe measures and compares; it tells no more than a hello would, and costs the answering side a bounded amount."""

from __future__ import annotations

import contextlib

import pytest
from blindformer.parties.transport.handshake import (
    FRAME_BYTES,
    FRAMES_AT_ONCE,
    PeerFacts,
    answer_probe,
    is_probe,
    my_facts,
    probe,
)
from blindformer.parties.transport.stream import memory_pair
from blindformer.protocols.errors import PeerGone, PeerProtocolError
from blindformer.tests.patience import PATIENCE


def probed(mine: PeerFacts, theirs: PeerFacts, aside, seconds: float = 0.2):
    server, client = memory_pair("server", "client", 20)
    answered = aside(lambda: answer_probe(server, server.recv_message(), theirs))
    result = probe(client, mine, seconds)
    answered.result(PATIENCE)
    return result


def test_a_probe_tells_no_more_than_it_is_asked(aside):
    told = probed(my_facts("client", programs=["aa", "bb"]), my_facts("server", programs=["bb", "cc"]), aside)
    assert told.facts.programs == ["bb"]
    assert (told.facts.role, told.facts.blindformer) == ("server", my_facts("client").blindformer)
    assert abs(told.clock_s) < 10
    assert told.rtt_s > 0
    assert told.up > 0 < told.down


@pytest.mark.parametrize(
    "request_",
    [{}, {"up": 0}, {"up": -1}, {"down": FRAMES_AT_ONCE + 1}, {"down": 1.0}, {"up": True}, {"echo": "1"},
     {"up": 1, "down": 1}, {"query": 1}, {"bye": False}],
)  # fmt: skip
def test_a_probe_refuses_what_nobody_may_ask(request_, aside):
    server, client = memory_pair(timeout=20)
    client.send_message({"probe": my_facts("client").model_dump()})
    client.send_message(request_)
    message = server.recv_message()
    assert is_probe(message)
    with pytest.raises(PeerProtocolError, match="more than it may"):
        answer_probe(server, message, my_facts("server"))


@pytest.mark.parametrize("request_", [{"echo": 1}, {"down": FRAMES_AT_ONCE}])
def test_a_probe_ends(request_, aside):
    server, client = memory_pair(timeout=20)
    client.send_message({"probe": my_facts("client").model_dump()})

    def ask_on() -> None:
        client.recv_message(16384)
        with contextlib.suppress(PeerGone):
            while True:
                client.send_message(request_)
                for _ in range(request_.get("down", 0)):
                    client.recv(FRAME_BYTES)
                if "echo" in request_:
                    client.recv_message()

    asking = aside(ask_on)
    with pytest.raises(PeerProtocolError, match="more than it may"):
        answer_probe(server, server.recv_message(), my_facts("server"))
    assert server.meter.sent < 200e6
    server.close()
    asking.result(PATIENCE)


def test_who_answers_with_something_else_is_said_so(aside):
    for answer in ({"hello": 1}, {"probe": {"role": "server"}}, {"probe": {**my_facts("server").model_dump(), "x": 1}}):
        server, client = memory_pair(timeout=20)
        server.send_message(answer)
        with pytest.raises(PeerProtocolError, match="does not answer probes"):
            probe(client, my_facts("client"))


def test_a_frame_of_a_probe_is_small():
    assert FRAME_BYTES <= 65536
