"""Ray beside a command: what it takes of a process, it gives back."""

from __future__ import annotations

import signal

import pytest
from blindformer.parties.cluster import connect
from blindformer.tests.shared.processes import alone

ray = pytest.importorskip("ray", reason="a cluster needs Ray: pip install 'blindformer[scale]'")


def handlers_of_sigterm() -> tuple[bool, bool]:
    """Whether a command's own is in place, once there is a cluster and once there is none any more."""

    def own(*_: object) -> None: ...

    signal.signal(signal.SIGTERM, own)
    connect()
    beside = signal.getsignal(signal.SIGTERM) is own
    ray.shutdown()
    return beside, signal.getsignal(signal.SIGTERM) is own


@pytest.mark.slow
def test_a_command_that_has_a_cluster_ends_at_sigterm_as_any_other(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert alone(handlers_of_sigterm) == (True, True)
