"""The campaign of lies about delegated layers: each kind, of each role, is found, and nobody else is accused."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
from blindformer.bench import delegated_lies


@pytest.fixture(scope="module")
def report() -> dict:
    count, out = 4 * len(delegated_lies.KINDS), io.StringIO()
    with redirect_stdout(out):
        assert delegated_lies.main(["--lies", str(count), "--honest", "70", "--format", "json"]) == 0
    return json.loads(out.getvalue())


def test_each_kind_of_lie_of_each_role_is_found_and_nobody_else_accused(report):
    assert report["found"] == report["lies"] >= 4 * len(delegated_lies.KINDS) - 4
    assert set(report["by_role"]) == {"server", "dealer"}
    for kinds in report["by_role"].values():
        assert set(kinds) == set(delegated_lies.KINDS)
        assert all(kind["found"] for kind in kinds.values())
    assert (report["honest"], report["accused"]) == (70, 0)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"found": 5}, "2 of 7 lies were not found"),
        ({"accused": 1}, "1 of 4 honest runs were accused"),
        ({}, ""),
    ],
)
def test_a_broken_claim_is_said(change, what):
    assert delegated_lies.broken({"lies": 7, "found": 7, "honest": 4, "accused": 0, **change}) == what
