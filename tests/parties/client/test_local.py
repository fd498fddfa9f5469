"""Real services with this process as their client: right answers, and nobody left behind, whoever dies or stalls."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
import torch
from blindformer.models.artifacts import ArtifactError
from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price
from blindformer.parties.client.local import LocalParties
from blindformer.parties.launch.processes import LaunchError
from blindformer.protocols.clear import ClearEngine
from blindformer.tests.parties.conftest import TEXTS
from blindformer.tests.patience import PATIENCE

COMMANDS = {"dealer": "dealer", "server": "serve"}


@pytest.fixture(scope="module")
def inputs(loaded):
    return [loaded.encode(text, 16) for text in TEXTS[:2]]


@pytest.fixture(autouse=True)
def nothing_left(monkeypatch, tmp_path):
    """After every test: no service, and no private file of one."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    before = _services()
    yield
    deadline = time.monotonic() + PATIENCE
    while (_services() - before or list(scratch.iterdir())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert _services() <= before
    assert list(scratch.iterdir()) == []


def _services() -> set[psutil.Process]:
    """Services that this process or one of its own started, and their sessions' processes, alive or not waited for."""
    mine, services = os.environ.get("PYTEST_XDIST_WORKER"), set[psutil.Process]()
    for process in psutil.process_iter(["name"]):
        with contextlib.suppress(psutil.Error):
            if process.info["name"] in COMMANDS.values() and process.environ().get("PYTEST_XDIST_WORKER") == mine:
                services.add(process)
    return services


def test_answers_equal_the_reference_and_costs_equal_the_price(classifier, inputs):
    compiled, seen = classifier.compiled, []
    with LocalParties(compiled, pin=True, progress=lambda *report: seen.append(report)) as parties:
        answers = [parties.query(batch) for batch in inputs]
        assert parties.wire_overhead_bytes > 0
    cost = price(compiled.program)
    for output, batch in zip((answer.outputs for answer in answers), inputs, strict=True):
        values = {**compiled.encode_inputs(batch), **compiled.weights, **compiled.constants}
        expected = compiled.decode(interpret(compiled.program, ClearEngine(values)).outputs)
        assert output.keys() == expected.keys()
        for name in output:
            torch.testing.assert_close(output[name], expected[name], atol=0.003, rtol=0)
    for timings in (answer.timings for answer in answers):
        assert (timings.rounds, timings.online.sent, timings.online.received) == (cost.rounds, cost.up, cost.down)
        assert timings.offline_bytes == cost.offline_bytes
        assert timings.online_s > 0
    assert parties.setup_bytes == cost.setup_bytes
    assert {phase for phase, _, _ in seen} >= {"set-up", "offline"}


@pytest.mark.parametrize(("role", "moment"), [("server", "offline"), ("dealer", "idle")])
def test_killing_one_ends_all_and_names_it(folder, inputs, role, moment):
    """Who is named is who was killed by a signal, whatever its role and whoever has missed it."""
    killed: list[float] = []

    def kill() -> None:
        killed.append(time.monotonic())
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie of another test, for one
                if child.name() == COMMANDS[role]:
                    child.kill()

    def on_progress(phase: str, done: int, total: int) -> None:
        if phase == moment and done <= 1:
            kill()

    def session() -> None:
        with LocalParties(folder, timeout=PATIENCE, progress=on_progress) as parties:
            if moment == "idle":
                kill()
                time.sleep(0.3)
            for batch in inputs * 3:
                parties.query(batch)

    with pytest.raises(LaunchError) as caught:
        session()
    assert caught.value.party == role
    assert "SIGKILL" in str(caught.value)
    assert time.monotonic() - killed[0] < PATIENCE / 2, "nobody waited for the timeout"


def test_a_party_whose_session_is_killed_is_named(folder, inputs):
    """As when memory is short: the service lives on, which matters to nobody here."""
    with LocalParties(folder, timeout=PATIENCE) as parties:
        parties.query(inputs[0])
        (session,) = psutil.Process(parties.processes["server"]).children()
        session.kill()
        with pytest.raises(LaunchError, match=r"^server: was killed by SIGKILL; run again"):
            parties.query(inputs[0])
        assert not parties.open


@pytest.mark.slow
@pytest.mark.parametrize("role", COMMANDS)
def test_a_party_that_stalls_is_named_within_the_timeout(folder, inputs, role):
    with LocalParties(folder, timeout=5) as parties:
        parties.query(inputs[0])
        os.kill(parties.processes[role], signal.SIGSTOP)
        with pytest.raises(LaunchError) as caught:
            parties.query(inputs[0])
    assert caught.value.party == role
    assert "seconds" in str(caught.value)


def test_a_missing_or_mixed_folder_is_explained(folder, tmp_path):
    with pytest.raises(ArtifactError, match="holds no compiled model"):
        LocalParties(tmp_path / "nothing")
    part = shutil.copytree(folder / "client", tmp_path / "client")
    with pytest.raises(LaunchError, match=r"^server: .*is the client's part; give the server's"):
        LocalParties(part)


def test_each_party_reads_its_own_part_only(classifier, inputs, tmp_path):
    for role in ("server", "client"):  # the dealer needs no files
        shutil.copytree(classifier.folder / role, tmp_path / "parts" / role)
    with LocalParties(tmp_path / "parts") as parties:
        assert parties.query(inputs[0]).outputs.keys() == classifier.compiled.program.outputs.keys()


def test_an_interrupt_leaves_nothing(folder, inputs):
    def interrupt(phase: str, done: int, total: int) -> None:
        if phase == "offline":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LocalParties(folder, progress=interrupt).query(inputs[0])


def test_a_client_imports_no_compiler_and_when_it_dies_the_parties_follow(folder, inputs, tmp_path):
    """Torch compiles for its own way to call an operation of ours: seconds, and 90 MB, in every client's process. It
    dies by SIGTERM; by SIGKILL in test_client.py, with the slow tests."""
    torch.save(inputs[0], tmp_path / "inputs")
    code = """
import sys, time, torch
from pathlib import Path
from blindformer.parties.client.local import LocalParties
parties = LocalParties(Path(sys.argv[1]))
parties.query(torch.load(sys.argv[2]))
assert any(step.target.startswith("blindformer.") for step in parties.program.prelude)
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
import blindformer.parties.service.two_party, blindformer.parties.service.dealer, blindformer.parties.reports.estimate
assert not {"nacl", "seal"} & set(sys.modules)  # of an extra, for sessions without a dealer
print("open", flush=True); time.sleep(60)
"""
    words = [sys.executable, "-c", code, str(folder), str(tmp_path / "inputs")]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "open\n"
    assert (
        len(psutil.Process(parent.pid).children(recursive=True)) == 5
    )  # two services, their sessions, and what forked them
    parent.terminate()
    parent.wait(PATIENCE)
    parent.stdout.close()
