"""The commands and the library for encrypted queries."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
from blindformer.models.artifacts import ArtifactError, load_client, load_server
from blindformer.parties.client.client import EncryptedClient
from blindformer.parties.client.encrypted import KeptKeys, KeyFileError
from blindformer.protocols.ckks.parameters import CkksError
from blindformer.protocols.errors import PeerDisagrees
from blindformer.tests.pages import execute
from blindformer.tests.parties.service.answers import clear
from blindformer.tests.parties.service.encrypted.conftest import TEXTS


def test_query_answers_as_the_library_does(call, report_of, site, tmp_path):
    common = ("query", site.made.folder, "--protocol", "ckks", "--server", site.address, "--certs",
              site.made.certificates, "--any-ring", "--keys", tmp_path)  # fmt: skip
    report = report_of(*common, *TEXTS[:2])
    assert (report["protocol"], report["plan"], len(report["results"])) == ("ckks", "he", 2)
    assert report["setup_bytes"] > 0
    code, out, errors = call(*common, TEXTS[0])
    assert code == 0, errors
    assert "one server, which computes on ciphertexts   CKKS, N = 1024" in out
    assert "evaluation keys sent earlier" in out
    best = report["results"][0]["labels"][0]["label"]
    assert f"{best!r}" in out.splitlines()[4]


def test_parts_say_the_same_of_the_circuit_and_only_the_client_knows_places(made):
    client, server = load_client(made.folder), load_server(made.folder)
    assert client.for_length().circuit.facts == server.for_length().circuit.facts
    assert server.for_length().circuit.ends is None


def test_a_folder_for_other_protocols_is_refused(made, tmp_path):
    shutil.copytree(made.folder / "client", tmp_path / "client")
    with pytest.raises(CkksError, match="not held to 128 bits are for tests alone"):
        EncryptedClient("localhost:1", folder=tmp_path)
    versions = json.loads((tmp_path / "client" / "versions.json").read_text())
    del versions["files"]["lengths/8/circuit.json"]
    (tmp_path / "client" / "versions.json").write_text(json.dumps(versions))
    (tmp_path / "client" / "lengths" / "8" / "circuit.json").unlink()
    with pytest.raises(CkksError, match="not compiled for encrypted queries; compile a model"):
        EncryptedClient("localhost:1", folder=tmp_path)


def test_a_damaged_circuit_is_an_artifact_error(made, tmp_path):
    from blindformer.models.artifacts.circuits import read_circuit

    folder = tmp_path / "lengths" / "8"
    folder.mkdir(parents=True)
    (folder / "circuit.json").write_text('{"facts": {}}')
    with pytest.raises(ArtifactError, match="is damaged"):
        read_circuit(tmp_path, 8)


def test_a_server_of_another_circuit_is_told_apart(site):
    """The client's folder says another layer than the server's."""
    mine = site.client()
    for program, facts in mine.server.facts.items():
        mine.server.facts[program] = replace(facts, steps=("another",))
    with mine, pytest.raises(PeerDisagrees, match=r"has program .*; compile once and give both sides artifacts"):
        mine.query(TEXTS[0])


def test_a_key_that_others_can_read_is_not_used(made, tmp_path):
    from blindformer.parties.config import Address

    facts = load_client(made.folder).for_length().circuit.facts
    kept = KeptKeys(tmp_path, facts, Address("localhost", 1))
    assert kept.load() is None
    kept.store(b"secret", "ab" * 16)
    assert kept.load() == (b"secret", "ab" * 16)
    next(tmp_path.glob("*.secret")).chmod(0o644)
    with pytest.raises(KeyFileError, match="can be read by other users"):
        kept.load()


def test_the_python_of_the_page_runs(site, tmp_path, capsys):
    import blindformer as bf

    where = f"{site.address!r}, folder={str(site.made.folder)!r}, certificates={str(site.made.certificates)!r}"
    there = '"server.example.org:7443", folder="compiled/client", certificates="certs"'
    keys = {'keys="keys"': f"keys={str(tmp_path)!r}, any_ring=True"}
    execute("ckks-client", {there: where, **keys, "What a day!": TEXTS[0], "Never again.": TEXTS[1]}, {"bf": bf})
    out = capsys.readouterr().out
    assert out.count("'label'") == 2
    assert "protocol ckks" in out


def test_a_program_for_several_texts_answers_one(made):
    """Other protocols ask for one text: it fills all places, and the first is read."""
    client = load_client(made.folder)
    question = client.encode(TEXTS[0])
    outputs = clear(made.compiled, question.sources())
    assert (outputs["logits"][0] - outputs["logits"][1]).abs().max() < 2**-12
    assert len(client.read(question, outputs)) == 3


@pytest.mark.slow
def test_run_encrypts_at_128_bits(report_of, tmp_path):
    """A classifier of one layer, of a real server on this machine."""
    import torch
    from blindformer.tests.shared.tiny import save_tokenizer, tiny_config
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    config = tiny_config(num_labels=3, hidden_size=16, intermediate_size=16, initializer_range=0.2)
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    report = report_of("run", tmp_path, *TEXTS[:3], "--plan", "he", "--protocol", "ckks", "--length", "8")
    assert report["protocol"] == "ckks"
    assert (report["rounds"], report["texts_a_query"], len(report["results"])) == (1, 3, 3)
