"""Bulk jobs and crowds on replicas, and the gateway: what the benchmarks count, on a small scale."""

from __future__ import annotations

import pytest
from blindformer.bench import bulk, crowd, gateway
from blindformer.models.building import compile_folder
from blindformer.tests.shared.postgres import find_programs

needs_postgres = pytest.mark.skipif(find_programs() is None, reason="needs Postgres; Debian has it: postgresql")


@needs_postgres
@pytest.mark.slow
def test_a_job_whose_client_is_killed_has_each_row_once(measured):
    report = measured(bulk, "--rows", 96, "--replicas", 1, "--sessions", 1, "--kills", 1)
    assert [report[name] for name in ("rows", "missing", "twice", "wrong", "reused")] == [96, 0, 0, 0, 0]
    assert report["kills"] == {"client": 1}
    assert report["used"] >= 12


@needs_postgres
@pytest.mark.slow
def test_all_of_a_crowd_are_answered(measured):
    report = measured(crowd, "--clients", 6, "--certificates", 3, "--replicas", 1)
    assert (report["answered"], report["wrong"], report["failed"], report["fewest"]) == (6, 0, {}, 2)
    assert report["memory_max_mb"] > report["memory_idle_mb"] / 2 > 0


def test_both_ways_to_the_gateway_are_measured(measured, tiny_encoder, tmp_path):
    compiled = compile_folder(tiny_encoder, tmp_path, lengths=[8], calibration=["how good my login is ."])
    report = measured(gateway, "--model", compiled, "--count", 2, "--pause", 0)
    assert report["direct_s"] > 0
    assert report["added_s"] == report["gateway_s"] - report["direct_s"]
