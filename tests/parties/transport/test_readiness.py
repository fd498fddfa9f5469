"""A wait ends when there is something to do, or at its deadline, and spins only where that pays."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from blindformer.parties.transport import readiness
from blindformer.parties.transport.frames import TENSOR, pack_header
from blindformer.parties.transport.readiness import SPIN_SECONDS, Readiness
from blindformer.parties.transport.stream import MemoryChannel
from blindformer.tests.patience import PATIENCE


@pytest.fixture
def pair():
    a, b = socket.socketpair()
    with a, b:
        yield a, b


@pytest.mark.parametrize("spin", [True, False])
def test_it_ends_with_the_first_byte_or_at_the_deadline(pair, spin):
    waiting = Readiness(pair[0].fileno())
    assert not waiting.wait(True, False, time.monotonic() + 0.02, spin)
    assert waiting.wait(False, True, time.monotonic() + PATIENCE, spin)
    threading.Timer(0.01, pair[1].send, [b"a"]).start()
    started = time.monotonic()
    assert waiting.wait(True, False, started + PATIENCE, spin)
    assert time.monotonic() - started < PATIENCE / 2


def test_only_after_a_prompt_answer_does_it_spin(pair, monkeypatch):
    monkeypatch.setattr(readiness, "CAN_SPIN", True)
    spins = list[float]()
    spin_once = Readiness._spin
    monkeypatch.setattr(Readiness, "_spin", lambda self, start: spins.append(start) or spin_once(self, start))
    waiting = Readiness(pair[0].fileno())

    def wait(spin: bool = True) -> int:
        waiting._block_until = 0.0  # whatever else this machine runs
        waiting.wait(True, False, time.monotonic() + 5 * SPIN_SECONDS, spin)
        return len(spins)

    assert (wait(False), wait(), wait()) == (0, 1, 1)  # the first small frame came late: the second wait blocks
    pair[1].send(b"a")
    assert (wait(), wait()) == (1, 2)


def test_it_blocks_while_others_want_the_core(pair, monkeypatch):
    class Usage:
        ru_nivcsw = 0

    def others(_who: int) -> Usage:
        Usage.ru_nivcsw += 1
        return Usage()

    monkeypatch.setattr(readiness, "getrusage", others)
    waiting = Readiness(pair[0].fileno())
    waiting._spin(time.monotonic())
    assert waiting._block_until > time.monotonic()


def test_a_frame_that_comes_byte_by_byte_is_spun_for_once(pair, monkeypatch):
    spins = list[bool]()
    wait = Readiness.wait

    def counted(self: Readiness, reading: bool, writing: bool, deadline: float, spin: bool) -> bool:
        spins.append(spin)
        return wait(self, reading, writing, deadline, spin)

    monkeypatch.setattr(Readiness, "wait", counted)
    channel = MemoryChannel(pair[0], "client", PATIENCE, None)
    frame = pack_header(TENSOR, 8) + bytes(8)

    def trickle() -> None:
        for byte in frame:
            time.sleep(0.002)
            pair[1].send(bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    assert channel.recv(8) == bytes(8)
    thread.join()
    assert spins.count(True) == 1 < len(spins)
