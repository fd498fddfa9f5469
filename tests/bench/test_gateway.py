"""bench.gateway: what the gateway adds to a query."""

import json

from blindformer.bench.gateway import main
from blindformer.models.building import compile_folder


def test_both_ways_are_measured(tiny_encoder, capsys, tmp_path):
    compiled = compile_folder(tiny_encoder, tmp_path, lengths=[8], calibration=["how good my login is ."])
    assert main(["--model", str(compiled), "--count", "2", "--pause", "0", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["direct_s"] > 0
    assert found["added_s"] == found["gateway_s"] - found["direct_s"]
