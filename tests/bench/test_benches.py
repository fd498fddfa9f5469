"""Each bench, small: one JSON line with its figures and where they are from, a table of them, no promise broken."""

from __future__ import annotations

import importlib
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from blindformer.bench import faults, generation
from blindformer.bench.ledgers import audit, watched_store
from blindformer.parties.session.preprocessing_store import PreprocessingStore
from blindformer.tests.shared.tiny import tiny_llama
from sqlalchemy import text

NEEDS = {"he_models": ["tenseal"], "peers": ["crypten", "seal"]}
DIGITS_HE = Path(__file__).parents[1] / "data" / "digits-he"
TINY, NETWORK = ("--model", "bert-tiny", "--length", 8), ("--rtt", 8, "--bandwidth", 50)
WRITES = ("generation", "--model", "MODEL")
CASES = [
    (("latency", *TINY, "--queries", 1, *NETWORK), {"protocol": "beaver", "rtt_s": 0.008, "sites_out_of_range": 0}),
    (("latency", *TINY, "--queries", 1, "--weights", "both"), {"weights_are": "both"}),
    (("peers", *TINY, "--parties", 3, "--layers", 1, "--without-dealer", "--product", 2, 64, 64), {"layers": 1}),
    (("costs", "--lengths", 16), {"model": "minilm"}),
    ((*WRITES, "--cache", 8, "--tokens", 2, "--drafts", 4), {"protocol": "beaver", "prompt_tokens": 8}),
    ((*WRITES, "--cache", 4, "--tokens", 2, "--weights", "public", *NETWORK), {"protocol": "delegated"}),
    ((*WRITES, "--prompts", 2, "--tokens", 5, "--protocol", "clear"), {"prompts": 2, "positions": 10}),
    (("he_models", DIGITS_HE, "--data", "digits", "--rows", 8, "--count", 8), {"rows": 8}),
    (("faults", "--life", "queries", "--instants", 1, "--timeout", 30), {"broken": [], "reused": 0}),
    (("faults", "--dealer", "none", "--instants", 1, "--timeout", 30), {"broken": [], "reused": 0}),
    (("faults", "--life", "conversations", "--instants", 1, "--timeout", 30), {"broken": [], "reused": 0}),
]


@pytest.mark.parametrize(("words", "figures"), CASES, ids=lambda value: " ".join(map(str, value)))
def test_a_bench_measures(words: tuple[Any, ...], figures: dict[str, Any], tmp_path, monkeypatch) -> None:
    name, *arguments = words
    for package in NEEDS.get(name, []):
        pytest.importorskip(package)
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


@pytest.fixture
def stores(tmp_path):
    """Two parties that made three queries' correlations ahead and used the first."""
    server, client = PreprocessingStore(tmp_path / "server"), watched_store(tmp_path / "client")
    for store in (server, client):
        store.begin("a" * 32, "p", "w")
        for number in range(3):
            store.add("a" * 32, number, bytes([number + 1]) * 32, [b"corrections"] if store is server else None)
        entry = store.ledger.take("a" * 32, 0)
        assert entry is not None
        store.fetch(entry)
    return server, client


@pytest.mark.parametrize(
    ("slot", "change", "broken"),
    [
        (None, "", False),
        (2, "", True),  # a key under two numbers
        (1, "UPDATE queries SET state = 'ready' WHERE number = 0", True),  # as an old copy of the folder would have it
        (1, "DELETE FROM audit", True),
    ],
)
def test_the_audit_of_faults_finds_what_could_be_used_again(stores, slot, change, broken) -> None:
    server, client = stores
    if slot:
        client.ledger.keys.write(slot, bytes([1]) * 32)
    if change:
        with client.ledger.database.write() as db:
            db.execute(text(change))
    audited = audit(server.folder, client.folder, answered=1)
    assert audited.used == (1 if change != "DELETE FROM audit" else audited.used)
    assert bool(audited.reused or audited.damaged) == broken


def test_the_audit_of_faults_finds_what_one_party_used_alone(stores) -> None:
    server, client = stores
    client.ledger.take("a" * 32, 1)
    (what,) = audit(server.folder, client.folder, answered=1).reused
    assert what == "client: number 1 was used, and the server has not marked it"
