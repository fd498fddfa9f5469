"""Parties on this machine are gone when it is over, whatever happened."""

from __future__ import annotations

import io
import json
import signal
import threading

import pytest
from blindformer.parties.launch import processes
from blindformer.parties.launch.processes import PartyProcess, PartyProcesses
from blindformer.parties.service.logs import _as_json


class Stalled:
    """A process that ends when it is killed; Ctrl-C comes while one waits for it."""

    def __init__(self, pid, killed):
        self.pid, self.killed = pid, killed

    def code(self, seconds=None):
        if self.pid in self.killed:
            return -signal.SIGKILL
        if seconds:
            raise KeyboardInterrupt
        return None


def test_ctrl_c_while_they_end_leaves_no_process_and_no_key(monkeypatch):
    killed, parties = [], PartyProcesses()
    monkeypatch.setattr(processes.os, "kill", lambda pid, number: killed.append(pid))
    (parties.scratch / "server.key").write_text("a key")
    reader = threading.Thread(target=lambda: None)
    reader.start()
    for role, pid in {"dealer": 11, "server": 12}.items():
        party = PartyProcess.__new__(PartyProcess)
        party.__dict__.update(process=Stalled(pid, killed), _stdin=io.StringIO(), _reader=reader)
        parties._running[role] = party
    with pytest.raises(KeyboardInterrupt):
        parties.close()
    assert sorted(killed) == [11, 12]
    assert not parties.scratch.exists()
    parties.close()


def test_a_line_is_heard_whatever_stderr_is_encoded_in():
    line = _as_json({"event": "ready"}, {"model": "mein Möbel 😀"})
    assert line.isascii()
    assert json.loads(line)["model"] == "mein Möbel 😀"
