"""The hello: agreement, and disagreement told on both sides. The probe: it tells no more, and is bounded."""

from __future__ import annotations

import pytest
from blindformer.parties.transport.handshake import (
    MOST_ECHOES,
    Hello,
    answer_hello,
    answer_probe,
    hello,
    is_probe,
    my_facts,
    probe,
)
from blindformer.protocols.errors import PeerDisagrees, PeerProtocolError, PeerRefused
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.memory import memory_pair
from blindformer.versions import my_version, spoken_version

SERVER = Hello(
    blindformer="0.1.0", role="server", topology="dealer", program="ab" * 32, plan="cd" * 32, protocol="beaver",
    session="0f" * 16, config="ef",
)  # fmt: skip
CLIENT = SERVER.model_copy(update={"role": "client"})


def greet(pair, aside, server: Hello, client: Hello, server_expects="client"):
    """The client speaks first; what each side gets."""
    there = aside(hello, pair[1], client, "server")
    try:
        here = answer_hello(pair[0], lambda theirs: server, (server_expects,))
    except Exception as error:
        here = error
    return here, there.exception(10) or there.result()


def test_agreement(make_pair, aside):
    assert greet(make_pair(), aside, SERVER, CLIENT) == (CLIENT, SERVER)


def test_a_peer_from_before_the_streams_changed_is_told_so(make_pair, aside):
    """The package's version is the same; what the two would send each other is not."""
    here, there = greet(
        make_pair(),
        aside,
        SERVER.model_copy(update={"blindformer": spoken_version()}),
        CLIENT.model_copy(update={"blindformer": my_version()}),
    )
    assert str(here).startswith(f"client: has blindformer {my_version()}, this side has {spoken_version()}; install")
    assert isinstance(there, PeerDisagrees)


@pytest.mark.parametrize(
    ("field", "value", "remedy"),
    [
        ("topology", "helper", "write topology"),
        ("blindformer", "0.2.0", "install the same version"),
        ("program", "ef" * 32, "compile once"),
        ("ring", 32, "same ring"),
        ("plan", "ef" * 32, "same plan"),
        ("protocol", "clear", "same protocol"),
        ("session", "aa" * 16, "same session"),
        ("config", "aa", "give all parties the same protocol"),
    ],
)
def test_disagreement_is_named_on_both_sides(make_pair, aside, field, value, remedy):
    here, there = greet(make_pair(), aside, SERVER, CLIENT.model_copy(update={field: value}))
    for error, peer in ((here, "client"), (there, "server")):
        assert isinstance(error, PeerDisagrees)
        assert str(error).startswith(f"{peer}: has {field} ")
        assert str(value)[:12] in str(error)
        assert remedy in str(error)
        assert len(str(error)) < 200


def test_another_topology_is_named_before_all_that_differs_with_it(make_pair, aside):
    """It has another program, which no compilation would mend."""
    helped = {"topology": "helper", "program": "ef" * 32, "config": "aa", "blindformer": "0.2.0"}
    here, there = greet(make_pair(), aside, SERVER.model_copy(update=helped), CLIENT)
    assert str(there) == (
        'server: has topology helper, this side has dealer; write topology = "helper" in [session] of this side, '
        'or "dealer" on the other'
    )
    assert str(here).startswith('client: has topology dealer, this side has helper; write topology = "dealer" in')


@pytest.mark.parametrize("field", ["topology", "session", "config"])
def test_a_session_may_be_left_to_the_peer_and_a_configuration_out(aside, field):
    here, there = greet(memory_pair(), aside, SERVER.model_copy(update={field: ""}), CLIENT)
    assert (here, getattr(there, field)) == (CLIENT, "")


def test_a_wrong_role_is_refused(make_pair, aside):
    pair = make_pair()
    here, _ = greet(pair, aside, SERVER, CLIENT, server_expects="dealer")
    assert isinstance(here, PeerRefused)
    assert "says it is a client where a dealer was expected" in str(here)
    with pytest.raises(PeerRefused, match="server: stopped and said"):
        pair[1].recv(1)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {**CLIENT.model_dump(), "extra": 1},
        {**CLIENT.model_dump(), "ring": "64"},
        {**CLIENT.model_dump(), "role": "x" * 1000},
        {**CLIENT.model_dump(), "program": "\x1b[31m"},
        {**CLIENT.model_dump(), "session": "49206f776520796f75" * 4},  # words of the peer, to be signed
        {**CLIENT.model_dump(), "plan": "ab" * 33},
        {**CLIENT.model_dump(), "ring": True},
        {**CLIENT.model_dump(), "ring": 10**30},
        {"\x1b[31m" * 30: 1},
    ],
)
def test_what_is_no_hello(message):
    server, client = memory_pair()
    client.send_message(message)
    with pytest.raises(PeerProtocolError, match="client: sent no valid hello") as caught:
        answer_hello(server, lambda theirs: SERVER, ("client",))
    assert str(caught.value).isprintable()
    with pytest.raises(PeerProtocolError, match="server: stopped and said"):
        client.recv_message()


def test_a_huge_hello_is_refused():
    server, client = memory_pair()
    client.send_message({"role": "x" * 10_000})
    with pytest.raises(PeerProtocolError, match="at most 4096"):
        answer_hello(server, lambda theirs: SERVER, ("client",))


def test_a_probe_tells_no_more_than_it_is_asked(aside):
    server, client = memory_pair(timeout=20)
    answered = aside(lambda: answer_probe(server, server.recv_message(), my_facts("server", programs=["bb", "cc"])))
    probed = probe(client, my_facts("client", programs=["aa", "bb"]))
    answered.result(PATIENCE)
    assert probed.facts.programs == ["bb"]
    assert (probed.facts.role, probed.facts.blindformer) == ("server", my_facts("client").blindformer)
    assert abs(probed.clock_s) < 10
    assert probed.rtt_s > 0


@pytest.mark.parametrize(
    "requests",
    [[{}], [{"up": 1}], [{"echo": True}], [{"echo": 1.0}], [{"echo": "1"}], [{"echo": 1, "more": 1}], [{"query": 1}],
     [{"bye": False}], [{"echo": number} for number in range(MOST_ECHOES + 1)]],
    ids=lambda requests: f"{len(requests)} {requests[0]}",
)  # fmt: skip
def test_a_probe_refuses_what_nobody_may_ask(requests):
    """Also to go on without end."""
    server, client = memory_pair(timeout=20)
    for message in ({"probe": my_facts("client").model_dump()}, *requests):
        client.send_message(message)
    message = server.recv_message()
    assert is_probe(message)
    with pytest.raises(PeerProtocolError, match="more than it may"):
        answer_probe(server, message, my_facts("server"))
    assert server.meter.messages_sent <= 1 + MOST_ECHOES


def test_who_answers_with_something_else_is_said_so():
    for answer in ({"hello": 1}, {"probe": {"role": "server"}}, {"probe": {**my_facts("server").model_dump(), "x": 1}}):
        server, client = memory_pair(timeout=20)
        server.send_message(answer)
        with pytest.raises(PeerProtocolError, match="does not answer probes"):
            probe(client, my_facts("client"))
