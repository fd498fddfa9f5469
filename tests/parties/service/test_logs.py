"""A log line: one line, known fields, nothing that a stranger can forge or flood."""

from __future__ import annotations

import io
import json

import pytest
from blindformer.parties.service.logs import BURST, Log
from blindformer.tests.parties.service.clock import Clock
from hypothesis import given
from hypothesis import strategies as st

NOW = 1_000_000_000.125


def lines(log: Log, stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def stream():
    return io.StringIO()


def test_json_is_one_object_a_line(stream):
    Log("server", "json", stream, Clock(NOW)).info("session-opened", session="ab" * 16, peer="client", seconds=1.23456)
    assert json.loads(stream.getvalue()) == {
        "time": "2001-09-09T01:46:40.125Z",
        "level": "info",
        "service": "server",
        "event": "session-opened",
        "session": "abababab",
        "peer": "client",
        "seconds": 1.235,
    }


def test_text_is_for_people(stream):
    Log("dealer", "text", stream, Clock(NOW)).warning("refused", address="[::1]:5", what="does not speak TLS")
    expected = '2001-09-09T01:46:40.125Z warning dealer refused  address=[::1]:5  what="does not speak TLS"\n'
    assert stream.getvalue() == expected


def test_there_is_no_field_for_a_seed(stream):
    with pytest.raises(ValueError, match="no field"):
        Log("server", "json", stream).info("taken", **{"seed": "5e" * 16})
    assert stream.getvalue() == ""


@given(what=st.text(max_size=600))
def test_whatever_is_said_stays_on_its_line(what):
    for form in ("json", "text"):
        stream = io.StringIO()
        Log("server", form, stream).error("session-failed", what=what)
        assert stream.getvalue().count("\n") == 1
        assert stream.getvalue().endswith("\n")
        assert "\x1b" not in stream.getvalue()


def test_a_flood_is_cut_and_counted(stream):
    clock = Clock(NOW)
    log = Log("server", "json", stream, clock)
    for _ in range(1000):
        log.warning("refused", address="a:1")
        log.info("answered", number=1)  # not for strangers to cause
    assert sum(line["event"] == "refused" for line in lines(log, stream)) == BURST
    assert sum(line["event"] == "answered" for line in lines(log, stream)) == 1000
    clock.now += 10
    log.warning("refused", address="a:1")
    assert lines(log, stream)[-1]["left_out"] == 1000 - BURST


def test_a_log_that_cannot_be_written_stops_nothing():
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    Log("server", "json", Full()).info("ready")
