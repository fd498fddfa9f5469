"""Progress on stderr: bars on a terminal, elsewhere lines about what takes long; and what an answer waits for."""

from __future__ import annotations

import io
import sys
import time

import pytest
from blindformer.parties.cli import progress
from blindformer.parties.cli.progress import PROGRESS, Phases
from blindformer.parties.cli.steps import compiling
from blindformer.tests.shared.deployment import eventually


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.delenv(PROGRESS, raising=False)
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    monkeypatch.setattr(progress, "PAUSE", 0.1)


class Screen(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_what_takes_long_is_said_on_stderr(monkeypatch, capsys, terminal):
    monkeypatch.setenv("FORCE_COLOR", "1" if terminal else "")
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal))
    with Phases() as phases:
        phases.begin("compile", 4)
        phases.note("compile", "export")
        phases.note("compile", "lower")
        eventually(lambda: " 25%" in screen.getvalue(), "the first phase is said")
        phases.end("compile")
        phases.step("query", 3, 4)
        eventually(lambda: " 75%" in screen.getvalue(), "the second phase is said")
        phases.step("correlations", 1, 2)
        eventually(lambda: " 50%" in screen.getvalue(), "a phase of this query's is said")
    assert capsys.readouterr().out == ""
    assert terminal or screen.getvalue() == "compile 25%  lower\nquery 75%  4 of 4\ncorrelations 50%  4 of 4\n"


def test_progress_that_is_off_shows_nothing(monkeypatch, capsys):
    monkeypatch.setenv(PROGRESS, "off")
    with Phases() as phases:
        phases.begin("load")
        time.sleep(0.3)
    waiting = progress.Waiting()
    with waiting.watching():
        waiting.step("offline", 0, 1)
        time.sleep(0.3)
        waiting.write("Hello")
    assert capsys.readouterr() == ("Hello", "")


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_compiling_that_is_stopped_ends_in_a_line(capfd, monkeypatch, stop, code):
    monkeypatch.setenv(PROGRESS, "off")
    with pytest.raises(SystemExit) as ended, Phases() as phases, compiling(phases):
        raise stop
    assert ended.value.code == code
    assert capfd.readouterr().err == "note: stopped; the same command compiles it from the start\n"


@pytest.mark.parametrize("terminal", [True, False])
def test_what_an_answer_waits_for(monkeypatch, terminal):
    monkeypatch.setattr(progress, "PATIENCE", 0.2)
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    shown = progress.Waiting()
    with shown.watching():
        shown.step("offline", 0, 1)
        eventually(lambda: "waiting for correlations (0 s)" in screen.getvalue(), "what is waited for is named")
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
