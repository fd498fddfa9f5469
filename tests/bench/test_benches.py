"""Each bench, small: one JSON line with its figures and where they are from, a table of them, no promise broken."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from blindformer.bench import faults, generation
from blindformer.tests.shared.tiny import tiny_llama

NEEDS = {"he_models": "tenseal", "peers": "crypten"}
DIGITS_HE = Path(__file__).parents[1] / "data" / "digits-he"
TINY, NETWORK = ("--model", "bert-tiny", "--length", 8), ("--rtt", 8, "--bandwidth", 50)
WRITES = ("generation", "--model", "MODEL")
CASES = [
    (("latency", *TINY, "--queries", 1, *NETWORK), {"protocol": "beaver", "rtt_s": 0.008, "sites_out_of_range": 0}),
    (("latency", *TINY, "--queries", 1, "--weights", "both"), {"weights_are": "both"}),
    (("peers", *TINY, "--parties", 3), {"weights": "seeded"}),
    (("costs", "--lengths", 16), {"model": "minilm"}),
    ((*WRITES, "--cache", 8, "--tokens", 2, "--drafts", 4), {"protocol": "beaver", "prompt_tokens": 8}),
    ((*WRITES, "--cache", 4, "--tokens", 2, "--weights", "public", *NETWORK), {"protocol": "delegated"}),
    ((*WRITES, "--prompts", 2, "--tokens", 5, "--protocol", "clear"), {"prompts": 2, "positions": 10}),
    (("he_models", DIGITS_HE, "--data", "digits", "--rows", 8, "--count", 8), {"rows": 8}),
    (("faults", "--life", "queries", "--instants", 1, "--timeout", 30), {"broken": [], "reused": 0}),
    (("faults", "--life", "conversations", "--instants", 1, "--timeout", 30), {"broken": [], "reused": 0}),
]


@pytest.mark.parametrize(("words", "figures"), CASES, ids=lambda value: " ".join(map(str, value)))
def test_a_bench_measures(words: tuple[Any, ...], figures: dict[str, Any], tmp_path, monkeypatch) -> None:
    name, *arguments = words
    if name in NEEDS and find_spec(NEEDS[name]) is None:
        pytest.skip(f"{NEEDS[name]} is not installed")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # where models are compiled
    monkeypatch.setattr(generation, "SLOTS", 128)
    monkeypatch.setattr(faults, "REHEARSALS", 1)  # how long parts take need not be exact
    there = {"MODEL": tiny_llama(tmp_path / "model")} if "MODEL" in words else {}
    bench, out = importlib.import_module(f"blindformer.bench.{name}"), io.StringIO()
    with redirect_stdout(out):
        given = [str(there.get(word, word)) for word in arguments]
        assert bench.main([*given, "--format", "json"]) == 0, "a promise is broken"
    report = json.loads(out.getvalue())  # one line
    assert report["command"].startswith(f"python -m bench.{name} ")
    assert {"commit", "machine", "versions"} <= report.keys()
    assert {key: report[key] for key in figures} == figures
    assert bench.show(report)
