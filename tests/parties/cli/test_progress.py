"""Progress on stderr, where it is no terminal: lines about what takes long."""

from __future__ import annotations

import time

import pytest
from blindformer.parties.cli import progress
from blindformer.parties.cli.progress import PROGRESS, Phases
from blindformer.parties.cli.steps import compiling
from blindformer.tests.patience import PATIENCE


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.delenv(PROGRESS, raising=False)
    monkeypatch.setattr(progress, "PATIENCE", 0.01)
    monkeypatch.setattr(progress, "PAUSE", 0.01)


def test_work_that_counts_shows_how_much_of_it_is_done(capfd):
    with Phases() as phases:
        phases.begin("compile")
        for done in (0, 430, 870):
            phases.of("compile")("32 tokens: measure", done, 1000)
            _until(f"compile {done // 10}%  32 tokens: measure\n", capfd)


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_compiling_that_is_stopped_ends_in_a_line(capfd, monkeypatch, stop, code):
    monkeypatch.setenv(PROGRESS, "off")
    with pytest.raises(SystemExit) as ended, Phases() as phases, compiling(phases):
        raise stop
    assert ended.value.code == code
    assert capfd.readouterr().err == "note: stopped; the same command goes on from what is compiled so far\n"


def _until(line: str, capfd) -> None:
    end = time.monotonic() + PATIENCE
    shown = ""
    while line not in shown:
        assert time.monotonic() < end, shown
        time.sleep(0.01)
        shown += capfd.readouterr().err
