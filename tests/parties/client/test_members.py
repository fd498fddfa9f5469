"""N parties and a dealer as real processes over mutual TLS, on CrypTen's communicator: answers and deaths."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

if importlib.util.find_spec("crypten") is None:
    pytest.skip("crypten is not installed", allow_module_level=True)

from blindformer.models.program.interpreter import interpret
from blindformer.models.program.pricing import price_among
from blindformer.parties.client.local_n_party import LocalNParty
from blindformer.parties.launch.processes import LaunchError
from blindformer.parties.session.parties import numbered
from blindformer.protocols.clear import ClearEngine
from blindformer.tests.parties.client.conftest import TEXTS
from blindformer.tests.patience import PATIENCE


@pytest.mark.slow
def test_three_parties_answer_as_clear_does_and_leave_nothing(folder, compiled, loaded):
    owners = numbered(3).sources(compiled.program)
    with LocalNParty(folder, numbered(3), timeout=PATIENCE) as parties:
        pids = parties.processes.values()
        for text in TEXTS:
            inputs = loaded.encode(text, 16)
            answer = parties.query(inputs)
            sources = {**compiled.encode_inputs(inputs), **compiled.weights, **compiled.constants}
            expected = interpret(compiled.program, ClearEngine(sources)).outputs
            for name, value in answer.outputs.items():
                scale = compiled.program.instructions[compiled.program.outputs[name]].scale
                assert (value - expected[name].double() * 2.0**-scale).abs().max() < 0.01
            assert not list(parties.scratch.glob("*puts-*")), "neither inputs nor outputs stay on the disk"
            assert set(answer.by_party) == {"alice", "bob", "carol"}
            declared = price_among(compiled.program, parties.parties.names, owners, 1)
            for name, timings in answer.by_party.items():
                assert (timings.online.sent, timings.online.received) == (declared.sent[name], declared.received[name])
                assert timings.rounds == declared.rounds
            assert answer.timings.online.sent == declared.online_bytes
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["alice", "carol", "dealer"])
def test_a_party_that_is_killed_is_named(folder, loaded, victim):
    with LocalNParty(folder, numbered(3), timeout=PATIENCE) as parties:
        os.kill(parties.processes[victim], signal.SIGKILL)
        started = time.monotonic()
        with pytest.raises(LaunchError, match=f"^{victim}: was killed by SIGKILL"):
            parties.query(loaded.encode(TEXTS[0], 16))
        assert time.monotonic() - started < PATIENCE / 2, "nobody waited for the timeout"
        assert not parties.open


@pytest.mark.slow
def test_when_the_launcher_itself_dies_the_parties_follow(folder):
    code = (
        "import time; from blindformer.parties.client.local_n_party import LocalNParty\n"
        "from blindformer.parties.session.parties import numbered\n"
        f"parties = LocalNParty({str(folder)!r}, numbered(2))\n"
        "print(parties.scratch, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        scratch = Path(owner.stdout.readline().strip())
        parties = psutil.Process(owner.pid).children(recursive=True)
        assert ([party.name() for party in parties].count("party"), scratch.is_dir()) == (3, True)
        owner.kill()
    _, alive = psutil.wait_procs(parties, timeout=PATIENCE)
    assert (alive, scratch.exists()) == ([], False)
