"""A process that reads what strangers send: its end is an error of one request."""

import os
import signal
import socket

import psutil
import pytest
from blindformer.protocols.ckks.isolated import Isolated, IsolatedEnded
from blindformer.tests.shared.deployment import eventually, runs

ENDED = "^the request ended the process that computed on it; make new keys, ask again$"


@pytest.fixture
def line():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def work(data, say):
    say(str(os.getpid()).encode())
    if data.isdigit():
        os.kill(os.getpid(), int(data))
    if data == b"bug":
        raise KeyError("a secret value")
    if data == b"sleep":
        signal.pause()
    return data


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, "bug"])
def test_its_end_is_an_error_of_what_was_asked(line, capfd, how):
    isolated, heard = Isolated(work), []
    assert list(isolated.ask(b"one", line[0]))[1:] == [b"one"]
    with pytest.raises(IsolatedEnded, match=ENDED):
        heard.extend(isolated.ask(str(getattr(how, "value", how)).encode(), line[0]))
    assert (isolated.closed, capfd.readouterr().err) == (True, "")
    with pytest.raises(IsolatedEnded, match=ENDED):
        list(isolated.ask(b"two", line[0]))


def test_it_ends_when_nobody_waits_for_what_it_says(line):
    isolated = Isolated(work)
    answers = isolated.ask(b"sleep", line[0])
    process = psutil.Process(int(next(answers)))
    line[1].send(b"stop")
    assert list(answers) == []
    assert isolated.closed
    assert not runs(process)


def test_it_ends_with_its_parent_and_holds_no_files_of_it(line):
    isolated = Isolated(work)
    process = psutil.Process(int(next(isolated.ask(b"one", line[0]))))
    assert process.num_fds() <= 4
    isolated.close()
    pid = os.fork()
    if pid == 0:
        child = Isolated(work)
        line[0].send(next(child.ask(b"one", line[0])))
        os._exit(0)
    orphan = psutil.Process(int(line[1].recv(100)))
    os.waitpid(pid, 0)
    eventually(lambda: not runs(orphan), "it looks for its parent")
