"""The campaign of lies: each kind is found, and a broken claim ends it with an error."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
from blindformer.bench import lies


@pytest.fixture(scope="module")
def report() -> dict:
    out = io.StringIO()
    with redirect_stdout(out):
        assert lies.main(["--count", "7", "--drawn", "2", "--honest", "4", "--format", "json"]) == 0
    return json.loads(out.getvalue())


def test_each_kind_of_lie_is_found_and_nobody_else_accused(report):
    assert set(report["by_kind"]) == set(lies.KINDS)
    assert report["found"] == report["lies"] >= 6
    assert (report["honest"], report["accused"]) == (4, 0)
    assert report["drawn_found"] <= report["drawn"] == 2


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"found": 5}, "2 of 7 lies in audits were not found"),
        ({"accused": 1}, "1 of 4 honest runs were accused"),
        ({"drawn": 1000, "drawn_found": 100, "deviations": 11.0}, "100 of 1000 lies were found, at a rate of 0.25"),
        ({}, ""),
    ],
)
def test_a_broken_claim_is_said(change, what):
    report = {"lies": 7, "found": 7, "honest": 4, "accused": 0, "drawn": 4, "drawn_found": 1, "deviations": 0.0}
    assert lies.broken({"rate": 0.25, **report, **change}) == what
