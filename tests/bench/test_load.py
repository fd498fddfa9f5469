"""A few seconds of load: every answer right, and figures that agree with each other."""

import io
import json
from contextlib import redirect_stdout

import pytest

pytest.importorskip("transformers")

from blindformer.bench import load


@pytest.mark.slow
def test_a_few_seconds() -> None:
    stdout = io.StringIO()
    arguments = ["--clients", "3", "--seconds", "5", "--single-seconds", "2", "--length", "8", "--format", "json"]
    with redirect_stdout(stdout):
        assert load.main(arguments) == 0
    assert stdout.getvalue().count("\n") == 1
    found = json.loads(stdout.getvalue())
    assert set(found["versions"]) >= {"blindformer", "torch", "python"}
    single, many = found["single"], found["many"]
    assert (single["clients"], many["clients"]) == (1, 3)
    for phase in (single, many):
        assert phase["wrong"] == 0
        assert phase["queries"] > 0
        assert phase["per_second"] == pytest.approx(phase["queries"] / phase["seconds"])
        assert phase["latency_p50_s"] <= phase["latency_p95_s"] <= phase["latency_max_s"]
        assert phase["fewest"] <= phase["queries"] / phase["clients"] <= phase["most"]
        assert phase["memory_max_mb"] == pytest.approx(max(phase["memory_mb"]), abs=0.1)
    assert found["ratio"] == pytest.approx(many["per_second"] / single["per_second"])


def test_slope_is_of_the_second_half() -> None:
    rising = [(float(second), 10.0 * max(0, second - 10)) for second in range(20)]
    assert load._slope(rising) == pytest.approx(600)
    assert load._slope([(float(s), 0.0 if s < 10 else 5.0) for s in range(20)]) == pytest.approx(0)
