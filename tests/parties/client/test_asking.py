"""When a client asks again, and when it does not: every session's errors, without parties."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from blindformer.parties.client import sessions as sessions_module
from blindformer.parties.client.session import ClientError, Session
from blindformer.parties.client.sessions import CLOSING_PAUSE, REOPEN_SECONDS, Sessions
from blindformer.parties.session.messages import SlotsBusy
from blindformer.protocols.errors import PeerDropped, PeerGone, PeerRefused

GONE = PeerGone("server", "closed the connection", "see its log")
BUSY = SlotsBusy("server", 0.0)
NO = PeerRefused("server", "does not want to", "ask somebody else")


def part(name: str):
    return SimpleNamespace(program=SimpleNamespace(hash=lambda: name))


PART = part("this one")


class Scripted(Session):
    """A session that is opened and asked with errors in the order of `script`; None: it goes well. `rooms`: sessions of
    other lengths."""

    def __init__(self, *script: BaseException | None, wait: float = 60.0, rooms: int = 0) -> None:
        self.script, self.did = list(script), []
        self.sessions = Sessions(self._opened, wait, lambda phase, done, total: self.did.append(phase), rooms > 0)
        for number in range(rooms):
            self.sessions.get(part(f"another {number}"))

    def ask_with_retry(self):
        reply, reply.retried = self.sessions.ask_with_retry(
            lambda: self.sessions.get(PART), lambda: self.ask({}), lambda error: self.sessions.lost(PART, error)
        )
        return reply

    def _opened(self, part, progress) -> Session:
        if part is PART:
            self._do("connect")
        self.open = True
        return self

    def _do(self, what: str) -> None:
        self.did.append(what)
        error = self.script.pop(0) if self.script else None
        if error is not None:
            raise error

    def _ask(self, inputs, more):
        self._do("ask")
        return SimpleNamespace(retried=None)

    def lost(self, error) -> bool:
        self.open = not isinstance(error, PeerGone)
        return not self.open

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    naps = []
    monkeypatch.setattr(sessions_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=naps.append))
    return naps


@pytest.mark.parametrize(
    ("script", "did", "retried"),
    [
        ([], "connect ask", False),
        ([None, GONE], "connect ask connect ask", True),
        ([None, GONE, GONE, GONE], "connect ask connect connect connect ask", True),  # it was coming back
        ([BUSY], "connect busy connect ask", False),
        ([None, BUSY], "connect ask busy ask", False),
        ([None, GONE, None, BUSY], "connect ask connect ask busy ask", True),
    ],
)
def test_what_is_answered_in_the_end(script, did, retried):
    scripted = Scripted(*script)
    assert scripted.ask_with_retry().retried == (str(GONE) if retried else "")
    assert scripted.did == did.split()


@pytest.mark.parametrize(
    ("script", "did"),
    [
        ([GONE], "connect"),  # nobody was there from the start
        ([None, NO], "connect ask"),
        ([None, GONE, None, GONE], "connect ask connect ask"),  # never a third time
        ([None, GONE, NO], "connect ask connect"),
        ([None, KeyboardInterrupt()], "connect ask"),
    ],
)
def test_what_is_raised(script, did):
    scripted = Scripted(*script)
    with pytest.raises(type(script[-1])):
        scripted.ask_with_retry()
    assert scripted.did == did.split()


def test_who_does_not_come_back_in_time_is_gone(slept):
    with pytest.raises(PeerGone):
        Scripted(None, GONE, GONE, wait=0.5).ask_with_retry()
    assert slept == []
    Scripted(None, GONE, GONE).ask_with_retry()
    assert len(slept) == 1
    assert REOPEN_SECONDS <= slept[0] < 2 * REOPEN_SECONDS, "not all at the same moment"


def test_a_crowded_service_is_asked_again_and_one_that_hangs_up_at_once_is_not(monkeypatch):
    """A service that keeps one waiting, and then lets others in, has room for others only."""
    dropped = PeerDropped("server", "closed the connection during the TLS handshake", "ask again")
    with pytest.raises(PeerDropped):
        Scripted(dropped).ask_with_retry()
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(
        sessions_module, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None)
    )
    scripted = Scripted(dropped, dropped)
    assert scripted.ask_with_retry().retried == ""
    assert scripted.did == ["connect", "connect", "connect", "ask"]
    with pytest.raises(PeerDropped):
        Scripted(*[dropped] * 100).ask_with_retry()


def test_a_busy_server_is_given_room_before_it_is_waited_for():
    scripted = Scripted(BUSY, rooms=1)
    scripted.ask_with_retry()
    assert scripted.did == ["connect", "connect", "ask"]


def test_a_server_that_still_closes_the_session_is_asked_again_whatever_the_wait(slept, monkeypatch):
    scripted = Scripted(BUSY, BUSY, BUSY, wait=0.0, rooms=1)
    scripted.ask_with_retry()
    assert scripted.did == ["connect"] * 4 + ["ask"]
    assert slept == [CLOSING_PAUSE] * 2
    monkeypatch.setattr(sessions_module, "CLOSING_SECONDS", 0.0)  # it has had its time, and is still busy
    with pytest.raises(SlotsBusy):
        Scripted(BUSY, BUSY, wait=0.0, rooms=1).ask_with_retry()


def test_a_closed_client_asks_nothing():
    scripted = Scripted()
    scripted.sessions.close()
    with pytest.raises(ClientError, match="is closed"):
        scripted.ask_with_retry()
    assert scripted.did == []


def test_a_server_that_stays_busy_is_the_error_when_the_wait_is_over():
    scripted = Scripted(BUSY, wait=0.0)
    with pytest.raises(SlotsBusy):
        scripted.ask_with_retry()
    assert scripted.did == ["connect"]
