"""The line between a child and its supervisor: what is said is heard, and nothing else passes."""

from __future__ import annotations

import json
import os
import socket

import pytest
from blindformer.parties.service.child import Control
from blindformer.parties.service.control import (
    LINE_LIMIT,
    Answered,
    BrokenControl,
    ChildLine,
    Failed,
    Introduced,
    Keep,
    Lines,
    Want,
    pack_report,
    parse_report,
)
from blindformer.protocols.forks import fork
from blindformer.tests.shared.processes import alone
from hypothesis import given
from hypothesis import strategies as st

INTRODUCED = Introduced(serial="0a", role="client", owner="ab" * 32, session="cd" * 16, program="ef" * 32)


@pytest.fixture
def line():
    """(the supervisor's end, the child's socket)"""
    ours, theirs = socket.socketpair()
    yield ChildLine(ours), theirs
    ours.close()
    theirs.close()


def test_reports_arrive_whole_however_they_are_cut(line):
    supervisor, child = line
    data = pack_report(INTRODUCED) + pack_report(Want(number=3))
    heard = []
    for number in range(len(data)):
        child.send(data[number : number + 1])
        heard += supervisor.read()
    assert heard == [INTRODUCED, Want(number=3)]
    assert supervisor.read() == []
    child.close()
    assert supervisor.read() is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"nonsense",
        b"[]",
        b"{}",
        b'{"want":{"number":1},"release":{"number":1}}',
        b'{"shutdown":{}}',
        b'{"want":{"number":-1}}',
        b'{"want":{"number":"1"}}',
        b'{"want":{"number":1,"more":2}}',
        b'{"want":7}',
        b'{"answered":{"number":1,"offline_s":NaN,"online_s":0,"offline_bytes":0,"sent":0,"received":0}}',
        b'{"keep":{"session":"' + b"0" * 32 + b'","program":"' + b"0" * 64 + b'","seed":"short"}}',
        b'{"failed":{"kind":"A\\u0000","what":""}}',
        b"[" * 4000,
        b"\xff\xfe",
    ],
)
def test_anything_else_breaks_the_line(text):
    with pytest.raises(BrokenControl):
        parse_report(text)


def test_a_line_without_end_breaks_it():
    lines = Lines()
    assert lines.feed(b"x" * LINE_LIMIT) == []
    with pytest.raises(BrokenControl, match="more than 4096 bytes"):
        lines.feed(b"x")
    with pytest.raises(BrokenControl, match="more than 4096 bytes"):
        Lines().feed(b"x" * (LINE_LIMIT + 1) + b"\n")


def test_a_child_that_does_not_listen_is_noticed(line):
    supervisor, _ = line

    def talk() -> None:
        for number in range(100_000):
            supervisor.send({"queued": number})

    with pytest.raises(BrokenControl, match="does not read"):
        talk()


def test_a_child_that_is_gone_is_no_error_here(line):
    supervisor, child = line
    child.close()
    supervisor.send({"go": True})


def test_no_error_repeats_what_was_said():
    seed = "0123456789abcdef" * 4
    with pytest.raises(BrokenControl) as caught:
        parse_report(json.dumps({"keep": {"session": "x", "program": "y", "seed": seed}}).encode())
    assert seed not in str(caught.value)
    assert caught.value.__cause__ is None


@given(number=st.integers(0, 2**63 - 1), amount=st.floats(0, 1e17), what=st.text(max_size=400))
def test_what_is_packed_is_what_is_read(number, amount, what):
    keep = Keep(session="0" * 32, program="1" * 64, seed="2" * 64)
    answered = Answered(
        number=number, offline_s=amount, online_s=amount, offline_bytes=amount, sent=amount, received=amount
    )
    for report in (INTRODUCED, Want(number=number), answered, keep, Failed(kind="PeerGone", what=what)):
        assert parse_report(pack_report(report).rstrip(b"\n")) == report


def fork_between():
    """What a child hears that forks while its supervisor speaks, in two pieces."""
    ours, theirs = socket.socketpair()
    os.dup(ours.fileno())  # it stays open: the end of the line would end this process
    control = Control(theirs)
    control.watch()
    ours.sendall(b'{"go": true}\n{"queued"')
    heard = [control.ask(Want(number=1))]
    with control.alone():
        ours.sendall(b": 3}\n")
        if (pid := fork()) == 0:
            os._exit(7)
        heard.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return [*heard, control.ask(Want(number=2))]


def test_a_child_forks_as_one_thread_and_hears_what_was_said_meanwhile():
    assert alone(fork_between) == [{"go": True}, 7, {"queued": 3}]
