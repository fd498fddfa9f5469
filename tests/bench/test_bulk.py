"""Bulk jobs and crowds on replicas: what the benchmarks count, on a small scale."""

from __future__ import annotations

import json

import pytest
from blindformer.bench import bulk, crowd
from blindformer.tests.shared.postgres import find_programs

pytestmark = pytest.mark.skipif(find_programs() is None, reason="needs Postgres; Debian has it: postgresql")


@pytest.mark.slow
def test_a_job_whose_client_is_killed_has_each_row_once(capsys):
    assert bulk.main(["--rows", "96", "--replicas", "1", "--sessions", "1", "--kills", "1", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [found[name] for name in ("rows", "missing", "twice", "wrong", "reused")] == [96, 0, 0, 0, 0]
    assert found["kills"] == {"client": 1}
    assert found["used"] >= 12


@pytest.mark.slow
def test_all_of_a_crowd_are_answered(capsys):
    words = ["--clients", "6", "--certificates", "3", "--replicas", "1", "--format", "json"]
    assert crowd.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["answered"], found["wrong"], found["failed"], found["fewest"]) == (6, 0, {}, 2)
    assert found["memory_max_mb"] > found["memory_idle_mb"] / 2 > 0
