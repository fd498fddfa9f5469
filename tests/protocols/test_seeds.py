"""Processes that are forked from one do not draw what it draws, nor what the others do."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from blindformer.parties import cli
from blindformer.parties.launch import fork_server
from blindformer.parties.service.child import become_child
from blindformer.protocols.ckks import workers


def drawn() -> list[float]:
    """By torch, numpy and Python."""
    return [torch.rand(1).item(), np.random.rand(), random.random()]


def tell(out: int) -> None:
    os.write(out, json.dumps(drawn()).encode())


def child_of_a_service(out: int) -> int:
    ours, its = socket.socketpair()
    with ours, its:
        return os.fork() or become_child(its, lambda control: tell(out), set())


def command_of_a_fork_server(out: int) -> int:
    if pid := os.fork():
        return pid
    try:
        cli.main = lambda: tell(out)
        fork_server._become({"words": ["draw"], "files": [out], "env": dict(os.environ), "cwd": "/"}, [out])
    finally:
        os._exit(0)


def worker_of_encrypted_queries(out: int) -> int:
    done = SimpleNamespace(save=lambda path: tell(out))
    return workers._forked([0], lambda part: done, Path("/"), range(1))


@pytest.mark.parametrize("fork", [child_of_a_service, command_of_a_fork_server, worker_of_encrypted_queries])
def test_what_is_forked_draws_its_own_numbers(fork: Callable[[int], int]):
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    draws = []
    for _ in range(2):
        ours, out = os.pipe()
        os.set_inheritable(out, True)
        pid = fork(out)
        os.close(out)
        with open(ours) as file:
            draws.append(json.loads(file.read()))
        os.waitpid(pid, 0)
    for numbers in zip(*draws, drawn(), strict=True):
        assert len(set(numbers)) == 3
