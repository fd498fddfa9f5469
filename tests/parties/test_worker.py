"""The worker's own command line, and what a dealer does with parties that come in any order."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
from blindformer.models.loading import load
from blindformer.parties.certificates import client_context, server_context
from blindformer.parties.handshake import hello
from blindformer.parties.local import compile_text
from blindformer.parties.meeting import meet_as_dealer, my_hello
from blindformer.parties.tls import dial, listen
from blindformer.protocols.errors import PeerError, PeerProtocolError

SESSIONS = ("a" * 32, "b" * 32)


@pytest.fixture(scope="module")
def program(tiny_classifier):
    return compile_text(load(tiny_classifier), 16, texts=["good", "bad"]).program


def test_a_worker_explains_its_arguments():
    found = subprocess.run(
        [sys.executable, "-m", "blindformer.parties.worker", "judge"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 2
    assert found.stderr.startswith("usage:")


def _come(certificates, address, program, role: str, session: str):
    channel = dial(*address, client_context(certificates, role), "dealer", timeout=10)
    hello(channel, my_hello(program, role, session), "dealer")
    return channel


@pytest.mark.parametrize(
    "order",
    [
        (("client", 0), ("server", 0)),
        (("server", 0), ("client", 0)),
        (("client", 1), ("server", 0), ("client", 0)),
        (("client", 0), ("client", 0), ("server", 0)),
    ],
)
def test_the_dealer_pairs_parties_by_session(certificates, program, aside, order):
    with listen("127.0.0.1", 0, server_context(certificates, "dealer"), timeout=10) as listener:
        met = aside(meet_as_dealer, program, listener, 10, None, 10)
        channels = [_come(certificates, listener.address, program, role, SESSIONS[n]) for role, n in order]
        server, client = met.result(10)
        assert (server.peer, client.peer) == ("server", "client")
        last = {role: channel for (role, n), channel in zip(order, channels, strict=True) if n == 0}
        for role, mine in (("server", server), ("client", client)):
            last[role].send_message({"it is": role})
            assert mine.recv_message() == {"it is": role}
        for channel in [*channels, server, client]:
            channel.close()


@pytest.mark.parametrize("session", ["", "abc"])
def test_a_hello_without_a_session_is_refused_and_told(certificates, program, session):
    with listen("127.0.0.1", 0, server_context(certificates, "dealer"), timeout=5) as listener:
        refused: list[PeerError] = []
        done = threading.Thread(target=_expect_nobody, args=(program, listener, refused))
        done.start()
        channel = _come(certificates, listener.address, program, "client", session)
        with pytest.raises(PeerProtocolError, match="named no valid session"):
            channel.recv_message()
        channel.close()
        done.join(10)
    assert [type(error) for error in refused] == [PeerProtocolError]


def _expect_nobody(program, listener, refused: list[PeerError]) -> None:
    with pytest.raises(PeerError, match="did not connect"):
        meet_as_dealer(program, listener, 5, refused.append, 2)
