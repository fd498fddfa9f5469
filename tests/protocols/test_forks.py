"""What is forked draws its own numbers and ends when it shall; beside other threads nothing is forked."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from blindformer.protocols.forks import fork
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared.processes import alone


def drawn() -> list[float]:
    """By torch, numpy and Python."""
    return [torch.rand(1).item(), np.random.rand(), random.random()]


def draws_of_two_children_and_their_own() -> list[list[float]]:
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    return [*(json.loads(said_by_child(lambda: json.dumps(drawn()))) for _ in range(2)), drawn()]


def said_by_child(say) -> str:
    ours, out = os.pipe()
    if not (child := fork()):
        try:
            os.write(out, say().encode())
        finally:
            os._exit(0)
    os.close(out)
    with open(ours) as file:
        text = file.read()
    os.waitpid(child, 0)
    return text


def test_what_is_forked_draws_its_own_numbers():
    for numbers in zip(*alone(draws_of_two_children_and_their_own), strict=True):
        assert len(set(numbers)) == 3


def end_of_a_child() -> int:
    signal.signal(signal.SIGTERM, lambda *_: None)  # as a library does
    if not (child := fork()):
        signal.pause()
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_ends_at_sigterm_whatever_a_library_made_of_it():
    assert alone(end_of_a_child) == -signal.SIGTERM


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the threads of a process")
@pytest.mark.parametrize(("work", "refused"), [("numpy.ones(1)", False), ("torch.set_num_threads(2)", True)])
def test_threads_that_a_library_started_in_c_count_unless_they_end_before_a_fork(work, refused):
    code = f"import os, numpy, torch; {work}; from blindformer.protocols.forks import fork\n"
    code += "assert len(os.listdir('/proc/self/task')) > 1; pid = fork() or os._exit(0); os.waitpid(pid, 0)"
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "1" if refused else "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ("a library has started threads" in done.stderr) == refused
    assert done.returncode == refused, done.stderr


def test_nothing_is_forked_beside_other_threads():
    done = threading.Event()
    beside = threading.Thread(target=done.wait)
    beside.start()
    try:
        with pytest.raises(OSError, match="a library has started threads") as refused:
            fork()
    finally:
        done.set()
        beside.join()
    assert refused.value.errno == errno.EDEADLK
