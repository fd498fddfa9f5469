"""What an answer waits for is shown, and goes away when more of it comes."""

from __future__ import annotations

import io
import sys
import time

import pytest
from blindformer.parties.cli import progress
from blindformer.tests.shared.deployment import eventually


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_what_an_answer_waits_for(monkeypatch, terminal):
    monkeypatch.delenv(progress.PROGRESS)
    monkeypatch.setattr(progress, "PATIENCE", 0.2)
    monkeypatch.setattr(progress, "PAUSE", 0.1)
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    shown = progress.Waiting()
    with shown.watching():
        shown.step("offline", 0, 1)
        eventually(lambda: "waiting for the dealer (0 s)" in screen.getvalue(), "the dealer is named")
        shown.step("again", 0, 1)
        shown.step("queue", 0, 3)
        wanted = f"{progress.AGAIN}waiting for a worker of the server, 2 go first (0 s)"
        eventually(lambda: wanted in screen.getvalue(), "the queue is named")
        shown.write("Hello")
        shown.step("online", 1, 2)
        eventually(lambda: "computing (0 s)" in screen.getvalue(), "the rounds are named")
    before, _, after = screen.getvalue().partition("Hello")
    assert progress.AGAIN not in after
    if terminal:
        assert before.endswith("\x1b8" + progress.HIDE)  # the cursor is back, and nothing is behind it
        assert after.endswith("\x1b8" + progress.HIDE)
        assert "\n" not in before + after
    else:
        assert "\x1b" not in before + after
        assert after.startswith("computing (0 s)\n")
    ended = screen.getvalue()
    time.sleep(0.3)
    assert screen.getvalue() == ended


def test_progress_that_is_off_shows_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    shown = progress.Waiting()
    with shown.watching():
        shown.step("offline", 0, 1)
        time.sleep(0.3)
        shown.write("Hello")
    assert capsys.readouterr() == ("Hello", "")
