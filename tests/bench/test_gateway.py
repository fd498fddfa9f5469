"""bench.gateway: what the gateway adds to a query."""

import json

from blindformer.bench.gateway import main


def test_both_ways_are_measured(tiny_encoder, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--model", str(tiny_encoder), "--count", "2", "--pause", "0", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["direct_s"] > 0
    assert found["added_s"] == found["gateway_s"] - found["direct_s"]
