"""A process that reads what strangers send: its end is an error of one request."""

import itertools
import os
import signal
import socket
import time

import psutil
import pytest
from blindformer.protocols.ckks.isolated import Isolated, IsolatedEnded
from blindformer.protocols.forks import fork
from blindformer.tests.shared.deployment import eventually, runs
from blindformer.tests.shared.processes import alone

ENDED = "^the request ended the process that computed on it; make new keys, ask again$"


def work(data, say):
    say(str(os.getpid()).encode())
    if data.isdigit():
        os.kill(os.getpid(), int(data))
    if data == b"bug":
        raise KeyError("a secret value")
    if data == b"sleep":
        signal.pause()
    return data


def ended(how):
    """(what was said before, whether it is closed)."""
    line, _ = socket.socketpair()
    isolated = Isolated(work)
    messages = list(isolated.ask(b"one", line))[1:]
    for question in (str(getattr(how, "value", how)).encode(), b"two"):
        with pytest.raises(IsolatedEnded, match=ENDED):
            list(isolated.ask(question, line))
    return messages, isolated.closed


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, "bug"])
def test_its_end_is_an_error_of_what_was_asked(capfd, how):
    assert alone(ended, how) == ([b"one"], True)
    assert capfd.readouterr().err == ""


def stopped():
    line, other = socket.socketpair()
    isolated = Isolated(work)
    answers = isolated.ask(b"sleep", line)
    process = psutil.Process(int(next(answers)))
    other.send(b"stop")
    return list(answers), isolated.closed, runs(process)


def test_it_ends_when_nobody_waits_for_what_it_says():
    assert alone(stopped) == ([], True, False)


def silent():
    line, _ = socket.socketpair()
    isolated = Isolated(work)
    answers = isolated.ask(b"sleep", line, 0.01)
    next(message for message in answers if message)  # it runs, however long its start took
    messages = list(itertools.islice(answers, 2))
    late = list(itertools.islice(isolated.ask(b"more", line, 9.0, time.monotonic()), 1))
    isolated.close()
    return messages + late


def test_its_silence_is_known_and_so_is_the_deadline():
    assert alone(silent) == [b"", b"", b""]


def orphaned():
    """How many files it has at most, and whether it ends after its parent."""
    line, other = socket.socketpair()
    isolated = Isolated(work)
    files = psutil.Process(int(next(isolated.ask(b"one", line)))).num_fds()
    isolated.close()
    pid = fork()
    if pid == 0:
        child = Isolated(work)
        line.send(next(child.ask(b"one", line)))
        os._exit(0)
    orphan = psutil.Process(int(other.recv(100)))
    os.waitpid(pid, 0)
    eventually(lambda: not runs(orphan), "it looks for its parent")
    return files


def test_it_ends_with_its_parent_and_holds_no_files_of_it():
    assert alone(orphaned) <= 4
