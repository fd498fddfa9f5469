"""What a benchmark prints."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import redirect_stdout
from types import ModuleType
from typing import Any

import pytest


def run(bench: ModuleType, *words: object) -> dict[str, Any]:
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert bench.main([*map(str, words), "--format", "json"]) == 0
    (line,) = printed.getvalue().splitlines()
    report = json.loads(line)
    assert report["command"].split()[:3] == ["python", "-m", f"bench.{bench.__name__.rpartition('.')[2]}"]
    assert {"blindformer", "torch", "python"} <= set(report["versions"])
    assert {"commit", "machine"} <= set(report)
    return report


@pytest.fixture(scope="session")
def measured() -> Callable[..., dict[str, Any]]:
    """`measured(bench, *words)` gives the report of a benchmark: one JSON line, and nothing else on stdout."""
    return run
