"""A wait ends when there is something to do, or at its deadline, and takes the core only where that pays."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from blindformer.parties.transport import readiness
from blindformer.parties.transport.readiness import LOOKING_SECONDS, Readiness


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    with a, b:
        yield a, b


@pytest.mark.parametrize("small", [True, False])
def test_it_ends_with_the_first_byte_or_at_the_deadline(pair, small):
    waiting = Readiness(pair[0].fileno())
    assert not waiting.wait(True, False, time.monotonic() + 0.02, small)
    assert waiting.wait(False, True, time.monotonic() + 5, small)
    threading.Timer(0.01, pair[1].send, [b"a"]).start()
    started = time.monotonic()
    assert waiting.wait(True, False, started + 5, small)
    assert time.monotonic() - started < 4


def test_only_after_a_prompt_answer_does_it_wait_awake(pair, monkeypatch):
    monkeypatch.setattr(readiness, "CORES", 2)
    looks = list[float]()
    look = Readiness._look
    monkeypatch.setattr(Readiness, "_look", lambda self, start: looks.append(start) or look(self, start))
    waiting = Readiness(pair[0].fileno())

    def wait(small: bool = True) -> int:
        waiting._asleep_until = 0.0  # whatever else this machine runs
        waiting.wait(True, False, time.monotonic() + 5 * LOOKING_SECONDS, small)
        return len(looks)

    assert (wait(False), wait(), wait()) == (0, 1, 1)  # the first small frame came late: the second wait is asleep
    pair[1].send(b"a")
    assert (wait(), wait()) == (1, 2)


def test_it_stays_asleep_while_others_want_the_core(pair, monkeypatch):
    class Usage:
        ru_nivcsw = 0

    def others(_who: int) -> Usage:
        Usage.ru_nivcsw += 1
        return Usage

    monkeypatch.setattr(readiness, "getrusage", others)
    waiting = Readiness(pair[0].fileno())
    waiting._look(time.monotonic())
    assert waiting._asleep_until > time.monotonic()
