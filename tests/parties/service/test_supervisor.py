"""The supervisor with children that do as they are told: whatever happens to one, the others are served.

The peers here speak a few words in the clear after what looks like a TLS hello (toy.py), so that no test needs a model.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from blindformer.parties.service.admission import ServiceLimits
from blindformer.parties.service.logs import Log
from blindformer.tests.parties.service.toy import HELLO, Toy
from blindformer.tests.shared.deployment import Running, crowd, eventually, siege

TOY = Path(__file__).with_name("toy.py")
NEWCOMER_SECONDS = 90.0  # at most, on a busy machine
HOARDED = "session: needs more than 0.5 GB of memory; if that is as it should be, raise memory_gb"


@contextlib.contextmanager
def starting():
    """`start(sessions=2, ...)` starts the toy service with these limits."""
    started: list[Running] = []

    def make(**options) -> Running:
        running = Running(
            [sys.executable, "-P", str(TOY), json.dumps(options)], lifeline="lifeline" in options, program=True
        )
        started.append(running)
        running.wait_for("ready")
        return running

    yield make
    for running in started:
        running.end()
        assert running.noise == []


@pytest.fixture
def start():
    with starting() as make:
        yield make


@pytest.fixture(scope="module")
def toy_for_two():
    """One of two sessions, which several tests use one after the other."""
    with starting() as make:
        yield make(sessions=2, share=1.0, memory_gb=0.5)


class Peer:
    """Somebody who connects. `introduce=""` stops after the connection; `hello=False` says nothing at all."""

    def __init__(self, toy: Running, owner: str = "aa", role: str = "client", hello: bool = True) -> None:
        self.sock = socket.create_connection(toy.address, 30)
        self._lines = self.sock.makefile("r")
        self.pid = 0
        if hello:
            self.sock.sendall(HELLO)
            self.pid = int(self.hear().split()[1])
            if owner:
                self.answer = self.ask(f"introduce {role} {owner}")

    def say(self, text: str) -> None:
        self.sock.sendall(text.encode() + b"\n")

    def hear(self) -> str:
        return self._lines.readline().strip()

    def ask(self, text: str) -> str:
        self.say(text)
        return self.hear()

    def close(self) -> None:
        self._lines.close()
        self.sock.close()

    @property
    def closed(self) -> bool:
        """Whether the service has hung up; waits for it."""
        try:
            return self.hear() == ""
        except ConnectionError:
            return True


def test_each_connection_has_a_process_of_its_own(start):
    toy = start()
    a, b = Peer(toy), Peer(toy)
    assert a.answer == b.answer == "open"
    assert a.pid != b.pid
    assert {a.pid, b.pid} <= {child.pid for child in toy.children()}
    assert a.ask("fds") == b.ask("fds")  # the second holds nothing of the first
    a.close()
    toy.wait_for("session-closed", pid=a.pid)
    eventually(lambda: {child.pid for child in toy.children()} == {b.pid}, "the child ends and is reaped")
    assert b.ask("query 1") == "go 1"


@pytest.mark.parametrize(
    ("command", "event", "fields"),
    [
        ("die", "child-killed", {"kind": "SIGKILL"}),
        ("fault", "session-failed", {"kind": "PeerProtocolError", "what": "client: said something odd; mend it"}),
        ("bug", "session-failed", {"kind": "KeyError"}),
        ("hoard 900", "session-failed", {"kind": "MemoryLimit", "what": HOARDED}),
        ("mutter nonsense", "session-failed", {"kind": "Killed"}),
        ('mutter {"want":{"number":-1}}', "session-failed", {"kind": "Killed"}),
        ('mutter {"release":{"number":1}}', "session-failed", {"kind": "Killed"}),
        ("introduce client bb", "session-failed", {"kind": "Killed"}),
        ("deaf", "session-closed", {}),
    ],
)
def test_what_a_child_does_ends_it_and_nobody_else(toy_for_two, command, event, fields):
    toy = toy_for_two
    a, b = Peer(toy), Peer(toy)
    a.say(command)
    toy.wait_for(event, pid=a.pid, **fields)
    assert a.closed
    assert "secret" not in json.dumps(toy.log)
    again = Peer(toy)  # there are two places: the dead one's is free
    assert again.answer == "open"
    assert b.ask("query 1") == "go 1"
    eventually(lambda: {child.pid for child in toy.children()} == {b.pid, again.pid}, "it is reaped")
    b.close()
    again.close()
    eventually(lambda: not toy.children(), "both places are free")


def test_a_child_killed_in_a_query_frees_its_worker(start, tmp_path):
    toy = start(workers=1)
    a, b, c = Peer(toy), Peer(toy), Peer(toy)
    assert a.ask(f"query 1 {tmp_path / 'never'}") == "go 1"
    assert b.ask("query 1") == "queued 0"
    assert c.ask("query 1") == "queued 1"
    next(child for child in toy.children() if child.pid == a.pid).kill()
    assert [b.hear(), b.hear()] == ["go 1", "done 1"]
    while (heard := c.hear()) == "queued 0":
        pass
    assert heard == "go 1"
    toy.wait_for("child-killed", pid=a.pid)


def test_too_many_are_told_when_to_come_back_and_may(start, tmp_path):
    toy = start(sessions=4, workers=1, queue=1, share=0.75)
    a, b, c = Peer(toy), Peer(toy), Peer(toy)
    refused = Peer(toy)
    assert refused.answer.startswith("busy ")
    assert "this certificate" in refused.answer
    other = Peer(toy, "bb")
    assert other.answer == "open"
    assert "all sessions are taken" in Peer(toy, "cc").answer
    gate = tmp_path / "gate"
    assert a.ask(f"query 1 {gate}") == "go 1"
    assert b.ask("query 1") == "queued 0"
    assert c.ask("query 1").startswith("busy ")
    gate.touch()
    assert [b.hear(), b.hear()] == ["go 1", "done 1"]
    assert c.ask("query 1") in ("go 1", "queued 0")
    toy.wait_for("busy", peer="client", what="session: this certificate holds all the sessions that one may")


def test_one_that_holds_a_worker_for_ever_is_ended(start, tmp_path):
    toy = start(workers=1, query_seconds=0.5)
    a, b = Peer(toy), Peer(toy)
    assert a.ask(f"query 1 {tmp_path / 'never'}") == "go 1"
    assert b.ask("query 1") == "queued 0"
    assert b.hear() == "go 1"
    toy.wait_for("session-failed", pid=a.pid, what="its query held a worker for more than 0.5 seconds")


def test_the_silent_the_slow_and_strangers_hold_up_nobody(start):
    toy = start(pending=4, pending_seconds=1, handshakes=2, handshake_seconds=60, pressed_seconds=0.3)
    silent = [Peer(toy, hello=False) for _ in range(4)]
    half = Peer(toy, hello=False)
    half.sock.sendall(HELLO[:6])
    stranger = Peer(toy, hello=False)
    stranger.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
    toy.wait_for("refused", kind="NotTls", what="does not speak TLS")
    assert stranger.sock.recv(100) == b"\x15\x03\x03\x00\x02\x02\x46"
    stuck = [Peer(toy, owner="") for _ in range(2)]  # they fill the handshake and go no further
    assert Peer(toy).answer == "open"  # so the slow ones have to leave
    assert stuck[0].closed
    toy.wait_for("refused", what="did not finish in time while others waited")
    assert half.closed
    assert all(peer.closed for peer in silent)
    assert Peer(toy).answer == "open"


@pytest.mark.slow
def test_hostile_addresses_shut_no_newcomer_out(start):
    """They say a whole hello and no more, and come again when they are hung up on. A newcomer comes again, too, and is
    in after seconds: of 128 twelve draw in a second, and who has wasted its turn draws last."""
    toy = start()
    with siege(toy.address, [f"127.1.{n // 250}.{1 + n % 250}" for n in range(300)], HELLO):
        toy.wait_for("refused", what="did not finish in time while others waited")
        started = time.monotonic()
        while not gets_in(toy, "127.0.0.2"):
            assert time.monotonic() - started < NEWCOMER_SECONDS


def gets_in(toy: Running, host: str) -> bool:
    """Whether a client that connects once has a session in the end."""
    with contextlib.suppress(OSError), socket.create_connection(toy.address, 30, (host, 0)) as sock:
        sock.sendall(HELLO + b"introduce client aa\n")
        with sock.makefile("r") as lines:
            return any(line == "open\n" for line in lines)
    return False


def test_a_handshake_ends_in_time_even_if_nobody_waits(start):
    toy = start(handshake_seconds=0.5)
    assert Peer(toy, owner="").closed
    toy.wait_for("refused", what="did not finish in time")


def test_a_visitor_is_no_session_but_has_little_time(start):
    toy = start(sessions=1, handshakes=2, handshake_seconds=2)
    assert Peer(toy).answer == "open"
    visitors = [Peer(toy, role="visitor") for _ in range(4)]  # two at a time: each is ended when its time is over
    assert {visitor.answer for visitor in visitors} == {"open"}
    assert all(visitor.closed for visitor in visitors)
    assert toy.logged("session-opened") == toy.logged("session-opened", peer="client")


def test_running_queries_finish_when_it_stops(start, tmp_path):
    toy = start(workers=2)
    a, b, idle, visitor = Peer(toy), Peer(toy), Peer(toy), Peer(toy, owner="")
    gate = tmp_path / "gate"
    assert a.ask(f"query 1 {gate}") == b.ask(f"query 1 {gate}") == "go 1"
    assert idle.ask(f"query 1 {gate}") == "queued 0"
    toy.send(signal.SIGTERM)
    toy.wait_for("stopping")
    assert idle.hear() == "stopping"
    assert visitor.hear() == "stopping"
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(toy.address, 5)
    gate.touch()
    for peer in (a, b):
        assert [peer.hear(), peer.hear()] == ["done 1", "stopping"]
    assert toy.wait() == 0
    toy.wait_for("stopped")


@pytest.mark.parametrize("how", ["grace", "second signal"])
def test_it_does_not_wait_for_ever(start, tmp_path, how):
    toy = start(grace=0.5 if how == "grace" else 1000)
    peer = Peer(toy)
    assert peer.ask(f"query 1 {tmp_path / 'never'}") == "go 1"
    toy.send(signal.SIGINT)
    toy.wait_for("stopping")
    if how == "second signal":
        toy.send(signal.SIGINT)
    assert toy.wait() == 0
    assert peer.closed


def test_no_child_outlives_the_supervisor(start, tmp_path):
    toy = start(metrics=True)
    peers = [Peer(toy), Peer(toy), Peer(toy, owner=""), Peer(toy, hello=False)]
    assert peers[0].ask(f"query 1 {tmp_path / 'never'}") == "go 1"
    eventually(lambda: toy.get("/healthz")[0] == 200, "metrics are served")
    assert len(toy.children()) == 4
    toy.kill()  # asserts that nobody is left
    assert all(peer.closed for peer in peers)


def test_it_ends_with_whoever_holds_its_lifeline(start, tmp_path):
    toy = start(lifeline=True, grace=1000)
    peer = Peer(toy)
    assert peer.ask(f"query 1 {tmp_path / 'never'}") == "go 1"
    toy.children()
    toy.lifeline.close()
    assert toy.wait() == 0
    assert peer.closed


def test_when_no_file_is_left_it_waits_and_goes_on(start):
    """The silent make room for others; processes that cannot start do not stop those that run."""
    toy = start(files=40, pending=64, pending_seconds=60, handshakes=64, sessions=64, share=1.0)
    with crowd(toy.address, 60):
        first = Peer(toy)
        assert first.answer == "open"
    with crowd(toy.address, 60, HELLO):
        # As many processes as files allow, or one more that cannot start: which of them comes first is chance.
        inside = lambda: len(psutil.Process(toy.process.pid).children())  # noqa: E731
        eventually(lambda: inside() > 20 or toy.logged("no-room"), "there is no room left")
        assert first.ask("query 1") == "go 1"
    eventually(lambda: inside() == 1, "the crowd's processes have ended")
    assert Peer(toy).answer == "open"


def test_metrics_and_health(start, tmp_path):
    toy = start(metrics=True, workers=1)
    eventually(lambda: toy.get("/readyz") == (200, '{"ready":true,"stopping":false}'), "ready")
    a, b = Peer(toy), Peer(toy)
    gate = tmp_path / "gate"
    assert a.ask(f"query 1 {gate}") == "go 1"
    assert b.ask("query 1") == "queued 0"
    Peer(toy).ask("fault")
    toy.wait_for_metrics(
        r'blindformer_sessions_opened_total\{role="client"\} 3\.0',
        r'blindformer_errors_total\{kind="PeerProtocolError"\} 1\.0',
        r"blindformer_running 1\.0",
        r"blindformer_queued 1\.0",
        r"blindformer_correlations_left 7\.0",
        r"blindformer_queries_total 0\.0",
    )
    toy.send(signal.SIGTERM)
    eventually(lambda: toy.get("/readyz")[0] == 503, "not ready while it stops")
    assert toy.get("/healthz")[0] == 200
    gate.touch()
    assert toy.wait() == 0


def test_the_death_of_the_metrics_process_is_reported_and_mended(start):
    toy = start(metrics=True)
    eventually(lambda: toy.get("/healthz")[0] == 200, "metrics are served")
    (process,) = toy.children()
    process.kill()
    toy.wait_for("metrics-died")
    assert Peer(toy).answer == "open"
    eventually(lambda: toy.get("/healthz")[0] == 200, "metrics are served again, at the same port")


def test_who_is_revoked_is_shown_out(start, tmp_path):
    """At once between queries; when the query is answered; and one that shook hands when it was revoked."""
    toy = start(workers=3)
    good, idle, busy = Peer(toy), Peer(toy, "bb bad"), Peer(toy, "cc bad")
    late = Peer(toy, owner="")
    gate = tmp_path / "gate"
    assert good.ask(f"query 1 {gate}") == busy.ask(f"query 1 {gate}") == "go 1"
    toy.send(signal.SIGHUP)
    refusal = "stopping server: refuses this client: its certificate was revoked; ask whoever runs the CA for a new one"
    assert idle.hear() == refusal
    assert late.ask("introduce client dd bad") == refusal
    assert idle.closed
    assert late.closed
    gate.touch()
    assert [busy.hear(), busy.hear()] == ["done 1", refusal]
    assert good.hear() == "done 1"
    assert good.ask("query 2") == "go 2"
    assert len(toy.logged("session-failed", kind="Revoked")) == 2
    assert len(toy.logged("refused", kind="Revoked")) == 1


def test_many_who_come_and_go_leave_nothing(start):
    toy = start(sessions=8)
    before = len(list(Path(f"/proc/{toy.pid}/fd").iterdir()))
    for _ in range(30):
        peers = [Peer(toy, owner="") for _ in range(3)]
        for peer in peers:
            peer.close()
    eventually(lambda: not toy.children(), "all children are reaped")
    eventually(lambda: len(list(Path(f"/proc/{toy.pid}/fd").iterdir())) == before, "no file is left open")


def test_a_flood_of_strangers_fills_no_log(start):
    toy = start()
    for _ in range(100):
        stranger = Peer(toy, hello=False)
        stranger.sock.sendall(b"junk")
        assert stranger.sock.recv(100)[:1] == b"\x15"
        stranger.close()
    assert Peer(toy).answer == "open"
    assert len(toy.logged("refused")) < 60  # 20, and 2 a second


def test_a_bug_in_what_the_loop_calls_ends_the_service():
    """It does not call it again and again."""
    toy, (ours, theirs) = Toy(ServiceLimits()), socket.socketpair()

    def bug() -> None:
        raise KeyError("a bug")

    def ready() -> None:
        toy.watch(ours, bug)
        theirs.send(b"x")

    with ours, theirs, socket.create_server(("127.0.0.1", 0)) as listener, pytest.raises(KeyError, match="a bug"):
        toy.run(listener, Log("toy", "json", io.StringIO()), ready)
    gc.unfreeze()


def test_a_session_may_take_memory_up_to_its_bound(toy_for_two):
    assert Peer(toy_for_two).ask("hoard 300") == "has 300"


def test_what_is_only_read_or_reserved_is_not_counted_and_torch_ends_as_python_does(tmp_path):
    """A model's weights are mapped from its files, and each thread reserves a stack and a heap."""
    file = tmp_path / "weights"
    with file.open("wb") as stream:
        stream.truncate(4 << 30)
    code = f"""
import mmap, threading, torch
from blindformer.parties.service.child import MemoryLimit, bounded_memory
with bounded_memory(0.5), open({str(file)!r}, "rb") as stream:
    weights = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    threads = [threading.Thread(target=lambda: torch.ones(1 << 20).sum()) for _ in range(16)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert torch.ones(25_000_000).sum() and weights[-1] == 0
try:
    with bounded_memory(0.5):
        torch.ones(10**9)
except MemoryLimit as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == HOARDED
