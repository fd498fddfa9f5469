"""One tiny measurement on an imitated network: figures that agree with each other, one JSON line on stdout."""

import contextlib
import io
import json

import pytest
from blindformer.bench import network

KEYS = """
    model weights length batch plan protocol rtt_s bandwidth queries offline_s offline_s_all offline_s_estimated
    online_s online_s_all online_s_estimated total_over_estimated total_over_estimated_all compute_s offline_bytes
    up_bytes down_bytes rounds tls threads versions commit machine
"""


def test_a_measurement_beside_its_estimate():
    stdout = io.StringIO()
    arguments = ["--model", "bert-tiny", "--length", "8", "--rtt", "8", "--bandwidth", "50", "--queries", "1"]
    with contextlib.redirect_stdout(stdout):
        assert network.main([*arguments, "--format", "json"]) == 0
    assert stdout.getvalue().count("\n") == 1
    found = json.loads(stdout.getvalue())
    assert set(found) == set(KEYS.split())
    assert (found["rtt_s"], found["bandwidth"]) == (0.008, 5e7)
    estimated = found["offline_s_estimated"] + found["online_s_estimated"]
    assert found["total_over_estimated"] == pytest.approx((found["offline_s"] + found["online_s"]) / estimated)
    # The network is there: no round is shorter, and no byte quicker, than it lets them be.
    assert found["online_s"] >= 8 * max(found["up_bytes"], found["down_bytes"]) / 5e7
    assert found["offline_s"] >= 8 * found["offline_bytes"] / 5e7


def test_the_table_says_what_was_measured():
    ones = dict.fromkeys(KEYS.split(), 1.0) | {"online_s_all": [1.0], "total_over_estimated_all": [0.9, 1.1]}
    grid = network.table(network.OnNetwork(**ones))
    assert [str(cell) for cell in grid.columns[0].cells] == ["offline", "online", "measured / estimated"]
