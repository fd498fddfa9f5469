"""When a client asks again, and when it does not: every transport's errors, without a transport."""

from __future__ import annotations

import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from blindformer.parties.client import base
from blindformer.parties.client.base import BaseClient, ClientError
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.protocols.errors import PeerDropped, PeerGone, PeerRefused

GONE = PeerGone("server", "closed the connection", "see its log")
BUSY = SlotsBusy("server", 0.0)
NO = PeerRefused("server", "does not want to", "ask somebody else")


class Scripted:
    """A transport in whose `connect` and `ask` errors come in the order of `script`; None: it goes well."""

    turn, at_once, closed = nullcontext(), True, False

    def __init__(self, *script: Exception | None, wait: float = 60.0, rooms: int = 0) -> None:
        self.settings = SimpleNamespace(client=SimpleNamespace(wait=wait))
        self.part, self.script, self.rooms, self.did = None, list(script), rooms, []

    def _do(self, what: str) -> None:
        self.did.append(what)
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error

    def connect(self, part) -> None:
        self._do("connect")

    def ask(self, questions, more):
        self._do("ask")
        return SimpleNamespace(retried=None)

    def lost(self, part, error) -> bool:
        return isinstance(error, PeerGone)

    def make_room(self) -> bool:
        self.rooms -= 1
        return self.rooms >= 0

    def rest(self, busy, deadline) -> None:
        self._do("rest")

    def close(self) -> None:
        self.closed = True


class Asker(BaseClient):
    who, costs = "", None


def ask(transport: Scripted):
    return Asker(transport, None).ask([SimpleNamespace(part=None)])  # type: ignore[abstract]


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    naps = []
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=time.monotonic, sleep=naps.append))
    return naps


@pytest.mark.parametrize(
    ("script", "did", "retried"),
    [
        ([], "connect ask", False),
        ([None, GONE], "connect ask connect ask", True),
        ([None, GONE, GONE, GONE], "connect ask connect connect connect ask", True),  # it was coming back
        ([BUSY], "connect rest connect ask", False),
        ([None, BUSY], "connect ask rest connect ask", False),
        ([None, GONE, None, BUSY], "connect ask connect ask rest connect ask", True),
    ],
)
def test_what_is_answered_in_the_end(script, did, retried):
    transport = Scripted(*script)
    assert ask(transport).retried == (str(GONE) if retried else "")
    assert transport.did == did.split()


@pytest.mark.parametrize(
    ("script", "did"),
    [
        ([GONE], "connect"),  # nobody was there from the start
        ([None, NO], "connect ask"),
        ([None, GONE, None, GONE], "connect ask connect ask"),  # never a third time
        ([None, GONE, NO], "connect ask connect"),
        ([BUSY, BUSY], "connect rest"),
        ([None, KeyboardInterrupt()], "connect ask"),
    ],
)
def test_what_is_raised(script, did):
    transport = Scripted(*script)
    with pytest.raises(type(script[-1])):
        ask(transport)
    assert transport.did == did.split()


def test_who_does_not_come_back_in_time_is_gone(slept):
    with pytest.raises(PeerGone):
        ask(Scripted(None, GONE, GONE, wait=0.5))
    assert slept == []
    ask(Scripted(None, GONE, GONE))
    assert len(slept) == 1
    assert base.REOPEN_SECONDS <= slept[0] < 2 * base.REOPEN_SECONDS, "not all at the same moment"


def test_a_crowded_service_is_asked_again_and_one_that_hangs_up_at_once_is_not(monkeypatch):
    """A service that keeps one waiting, and then lets others in, has room for others only."""
    dropped = PeerDropped("server", "closed the connection during the TLS handshake", "ask again")
    with pytest.raises(PeerDropped):
        ask(Scripted(dropped))
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None))
    transport = Scripted(dropped, dropped)
    assert ask(transport).retried == ""
    assert transport.did == ["connect", "connect", "connect", "ask"]
    with pytest.raises(PeerDropped):
        ask(Scripted(*[dropped] * 100))


def test_a_busy_server_is_given_room_before_it_is_waited_for():
    transport = Scripted(BUSY, rooms=1)
    ask(transport)
    assert transport.did == ["connect", "connect", "ask"]


def test_a_closed_client_asks_nothing():
    client = Asker(transport := Scripted(), None)  # type: ignore[abstract]
    client.close()
    with pytest.raises(ClientError, match="is closed"):
        client.ask([SimpleNamespace(part=None)])
    assert transport.did == []
