"""Bulk jobs and crowds on replicas: what the benchmarks count, on a small scale."""

from __future__ import annotations

import pytest
from blindformer.bench import bulk, crowd
from blindformer.tests.shared.postgres import find_programs

pytestmark = pytest.mark.skipif(find_programs() is None, reason="needs Postgres; Debian has it: postgresql")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    """One for both: else each service starts one of its own."""
    from ray.cluster_utils import Cluster

    shared = Cluster(initialize_head=True, head_node_args={"num_cpus": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", shared.address)
        yield
    shared.shutdown()


@pytest.mark.slow
def test_a_job_whose_client_is_killed_has_each_row_once(measured):
    report = measured(bulk, "--rows", 96, "--replicas", 1, "--sessions", 1, "--kills", 1)
    assert [report[name] for name in ("rows", "missing", "twice", "wrong", "reused")] == [96, 0, 0, 0, 0]
    assert report["kills"] == {"client": 1}
    assert report["used"] >= 12


@pytest.mark.slow
def test_all_of_a_crowd_are_answered(measured):
    report = measured(crowd, "--clients", 6, "--certificates", 3, "--replicas", 1)
    assert (report["answered"], report["wrong"], report["failed"], report["fewest"]) == (6, 0, {}, 2)
    assert report["memory_max_mb"] > report["memory_idle_mb"] / 2 > 0
