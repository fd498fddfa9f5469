"""What only a socket can do: stop in the middle, stall, and send garbage."""

from __future__ import annotations

import os
import socket
import threading
import time
import tracemalloc

import pytest
from blindformer.parties.transport import stream
from blindformer.parties.transport.frames import TENSOR, pack_header
from blindformer.parties.transport.stream import SPIN_SECONDS, PlainWire, Readiness, StreamChannel
from blindformer.protocols.errors import PeerError, PeerGone, PeerProtocolError, PeerRefused, PeerTimeout
from blindformer.tests.parties.transport.test_channel import send_until_it_fails
from blindformer.tests.patience import PATIENCE
from hypothesis import example, given, settings
from hypothesis import strategies as st

TENSOR_OF_10 = b"T" + (10).to_bytes(7, "big")


@pytest.fixture
def raw_pair():
    """`raw_pair(timeout)` gives (a channel, the bare socket at its other end)."""
    opened = []

    def make(timeout: float = 5):
        ours, theirs = socket.socketpair()
        opened.extend((StreamChannel(PlainWire(ours), "client", timeout), theirs))
        return opened[-2:]

    yield make
    for end in opened:
        end.close()


@pytest.mark.parametrize(
    ("sent", "what"),
    [
        (b"", "before the frame"),
        (TENSOR_OF_10 + b"abc", "client: closed the connection in the middle of a frame; see client's own"),
    ],
)
def test_what_comes_before_the_end_says_what_has_ended(raw_pair, sent, what):
    channel, raw = raw_pair()
    raw.sendall(sent)
    raw.close()
    with pytest.raises(PeerGone, match=what):
        channel.recv(10)
    with pytest.raises(PeerGone, match=r"before the frame|middle of a frame"):
        channel.recv(10)


def test_a_stall_in_the_middle_of_a_frame_cannot_be_repaired(raw_pair):
    channel, raw = raw_pair(timeout=0.1)
    raw.sendall(TENSOR_OF_10 + b"abc")
    with pytest.raises(PeerTimeout):
        channel.recv(10)
    with pytest.raises(PeerGone, match="earlier error"):
        channel.recv(10)
    channel.send(b"the other direction still works")


@pytest.mark.parametrize(("sizes", "what"), [((50_000_000,), "took nothing"), ((50_000_000, 4), "stood still")])
def test_a_peer_that_takes_nothing_times_out(raw_pair, sizes, what):
    channel, _ = raw_pair(timeout=0.2)
    move = channel.send if len(sizes) == 1 else channel.exchange
    with pytest.raises(PeerTimeout, match=what):
        move(bytes(sizes[0]), *sizes[1:])
    with pytest.raises(PeerGone, match="earlier error"):
        channel.send(b"x")


def test_a_frame_that_trickles_ends_though_it_never_stands_still(raw_pair):
    channel, raw = raw_pair(timeout=2)
    stop = threading.Event()

    def trickle() -> None:
        raw.sendall(b"T" + (1000).to_bytes(7, "big"))
        while not stop.wait(0.02):
            raw.sendall(b"x")

    thread = threading.Thread(target=trickle)
    thread.start()
    with pytest.raises(PeerTimeout, match="client: moved a frame more slowly than 16 KiB a second"):
        channel.recv(1000)
    stop.set()
    thread.join()


def test_silence_before_a_frame_is_not_slowness(raw_pair):
    channel, raw = raw_pair(timeout=0.2)
    for _ in range(3):
        with pytest.raises(PeerTimeout, match="sent nothing"):
            channel.recv(3)
    raw.sendall(b"T" + (3).to_bytes(7, "big") + b"abc")
    assert channel.recv(3) == b"abc"


def test_another_thread_can_end_the_waiting(make_pair, aside):
    server, client = make_pair(timeout=20)
    waiting = aside(server.recv, 4)
    server.interrupt()
    with pytest.raises(PeerGone):
        waiting.result(PATIENCE)
    with pytest.raises(PeerGone):
        client.recv(4)


@pytest.mark.parametrize("payload", [b"[" * 60_000, b"{", b"[]", b"\xff\xfe", b'{"a":NaN}', b"9" * 6000])
def test_a_message_that_is_not_a_json_object(raw_pair, payload):
    channel, raw = raw_pair()
    raw.sendall(b"J" + len(payload).to_bytes(7, "big") + payload)
    with pytest.raises(PeerProtocolError, match="not a JSON object"):
        channel.recv_message()


def test_a_refusal_that_crosses_a_large_send_is_heard(make_pair):
    server, client = make_pair(timeout=5)
    server.send_message({"error": {"kind": "PeerRefused", "what": "no"}})
    server.close()
    with pytest.raises(PeerRefused, match="server: stopped and said: no"):
        send_until_it_fails(client)


GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda kind, n, rest: bytes([kind]) + n.to_bytes(7, "big") + rest,
              st.sampled_from([0x54, 0x4A, 0, 0x16, 0xFF]), st.integers(0, 2**56 - 1), st.binary(max_size=100)),
)  # fmt: skip


@settings(max_examples=150)
@given(data=GARBAGE, wants_message=st.booleans())
@example(data=b"T" + b"\xff" * 7, wants_message=False)
@example(data=b"J" + b"\xff" * 7, wants_message=True)
@example(data=b"J" + (65536).to_bytes(7, "big"), wants_message=False)
def test_garbage_gives_a_typed_error_and_no_allocation(raw_pair, data, wants_message):
    channel, raw = raw_pair(timeout=2)
    raw.sendall(data)
    raw.close()
    tracemalloc.start()
    try:
        received = channel.recv_message() if wants_message else channel.recv(16)
        # The only way to be accepted is to be a frame.
        assert data.startswith(b"J" if wants_message else b"T" + (16).to_bytes(7, "big"))
        assert wants_message or len(received) == 16
    except PeerError as error:
        assert error.party == "client"  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        channel.close()
    assert peak < 500_000


def test_a_valid_frame_split_anywhere_is_the_same_frame(raw_pair):
    frame = b"T" + (5).to_bytes(7, "big") + b"abcde"
    for cut in range(1, len(frame)):
        channel, raw = raw_pair()
        raw.sendall(frame[:cut])
        raw.sendall(frame[cut:] + os.urandom(3))
        assert channel.recv(5) == b"abcde"


# A wait ends when there is something to do, or at its deadline, and spins only where that pays.


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
    monkeypatch.setattr(stream, "CAN_SPIN", True)
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

    monkeypatch.setattr(stream, "getrusage", others)
    waiting = Readiness(pair[0].fileno())
    waiting._spin(time.monotonic())
    assert waiting._block_until > time.monotonic()


def test_a_frame_that_comes_byte_by_byte_is_spun_for_once(pair, monkeypatch):
    spins, waits = list[bool](), threading.Event()
    wait = Readiness.wait

    def counted(self: Readiness, reading: bool, writing: bool, deadline: float, spin: bool) -> bool:
        spins.append(spin)
        waits.set()
        return wait(self, reading, writing, deadline, spin)

    monkeypatch.setattr(Readiness, "wait", counted)
    channel = StreamChannel(PlainWire(pair[0]), "client", 5)
    frame = pack_header(TENSOR, 8) + bytes(8)

    def trickle() -> None:
        waits.wait(5)  # before it, nothing has come
        for byte in frame:
            time.sleep(0.002)
            pair[1].send(bytes([byte]))

    thread = threading.Thread(target=trickle)
    thread.start()
    assert channel.recv(8) == bytes(8)
    thread.join()
    assert spins.count(True) == 1 < len(spins)
