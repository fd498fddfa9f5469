"""Commands forked from one process: their descriptors, environment and folder, how they end, and whose they are."""

from __future__ import annotations

import os
import signal
import socket

import psutil
import pytest
from blindformer.parties.gateway import KEY_VARIABLE
from blindformer.parties.launch.fork_server import ForkServer, _say, shared
from blindformer.parties.launch.processes import PartyProcess
from blindformer.tests.shared.deployment import eventually


@pytest.fixture
def run(forks):
    """`run(words, **env)`: the process, and its stderr as a file."""
    opened = []

    def start(words, same=(), **env):
        (stdin, ours), (theirs, stderr) = os.pipe(), os.pipe()
        process = forks.fork(words, {0: stdin, 2: stderr, **{fd: fd for fd in same}}, {**os.environ, **env})
        os.close(stdin)
        os.close(stderr)
        opened.append(os.fdopen(ours, "w"))
        opened.append(output := os.fdopen(theirs))
        return process, output

    yield start
    for file in opened:
        file.close()


def test_it_ends_as_the_command_line_does(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    process, output = run(["models", "show", "nowhere"])
    assert output.read() == "blindformer: nowhere: holds no compiled model; give the folder that compile wrote\n"
    assert process.code() == 1
    process, output = run(["models", "show", "--help"])
    assert (output.read(), process.code()) == ("", 0)


def test_it_has_the_callers_descriptors_and_a_session_of_its_own(run):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process, _ = run(
            ["dealer", "--listen", f"fd:{listener.fileno()}", "--local", '{"lifeline": true}'], [listener.fileno()]
        )
        eventually(lambda: os.getsid(process.pid) == process.pid, "it has a session of its own")
        assert process.code(0.0) is None
        os.kill(process.pid, signal.SIGKILL)
        assert process.code() == -signal.SIGKILL


def test_it_starts_where_few_files_may_be_open_and_leaves_none_open():
    server = ForkServer()
    process = psutil.Process(server._process.pid)
    process.rlimit(psutil.RLIMIT_NOFILE, (256, 256))
    with open(os.devnull) as nothing:
        assert server.fork(["models", "show", "--help"], {0: nothing.fileno()}, os.environ).code(60) == 0
        before, ours = process.num_fds(), psutil.Process().num_fds()
        for _ in range(3):
            assert server.fork(["models", "show", "--help"], {0: nothing.fileno()}, os.environ).code(60) == 0
    assert not server.gone
    eventually(lambda: process.num_fds() <= before, "no descriptor is left")
    assert psutil.Process().num_fds() < ours


def test_one_serves_all_who_read_the_same_environment(forks, monkeypatch):
    monkeypatch.setenv("PYTHONBREAKPOINT", "ray.util.rpdb._driver_set_trace")  # as Ray does; it is read when it is used
    assert shared() is forks
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert shared() is not forks


def test_one_that_is_gone_says_so():
    server, (stdin, ours) = ForkServer(), os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener, os.fdopen(ours, "w"):
        words = ["dealer", "--listen", f"fd:{listener.fileno()}", "--local", '{"lifeline": true}']
        process = server.fork(words, {0: stdin, listener.fileno(): listener.fileno()}, os.environ)
        os.close(stdin)
        server._process.kill()
        assert process.code() == 0
    with pytest.raises(OSError, match=r"ended|pipe"):
        server.fork(["doctor", "--env"], {}, {})
    eventually(lambda: not psutil.pid_exists(process.pid), "what it forked ends with its lifeline")


def test_after_one_that_is_gone_comes_another(forks, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "9")
    first = shared()
    first._process.kill()
    eventually(lambda: first.gone, "its end is heard")
    assert shared() is not first


def test_nothing_is_said_where_the_caller_has_left():
    """Not a traceback on its terminal either: a process often ends just as its caller does."""
    ours, theirs = socket.socketpair()
    with ours:
        theirs.close()
        _say(ours.fileno(), 1)


def test_a_party_does_not_inherit_the_gateways_key(monkeypatch, tmp_path):
    """The fork server is asked for one with it, too: what a process was started with can be read as long as it runs."""
    monkeypatch.setenv(KEY_VARIABLE, "bf-a-key-of-the-gateway")
    monkeypatch.setenv("OMP_NUM_THREADS", "11")  # a fork server of its own
    server, given, fork = shared(), [], ForkServer.fork
    monkeypatch.setattr(ForkServer, "fork", lambda *asked: given.append(asked[3]) or fork(*asked))
    party = PartyProcess(["models", "show", "--help"], [], tmp_path, lambda line: None)
    started = psutil.Process(server._process.pid).environ()
    party.end(60.0)
    assert KEY_VARIABLE not in {**started, **given[0]}
    assert started["OMP_NUM_THREADS"] == given[0]["OMP_NUM_THREADS"] == "11"
