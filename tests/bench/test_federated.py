"""The benchmark trains what is missing, and takes what is there."""

import json

import pytest

pytest.importorskip("flwr", reason="the extra `federated` is not installed")
pytest.importorskip("sklearn", reason="scikit-learn ships the digits")

from blindformer.bench import federated, federated_examples
from blindformer.federated.privacy import noise_for
from blindformer.federated.settings import FederateSettings


def test_rows_come_from_the_folders_that_are_there(tmp_path, capsys, monkeypatch):
    """Each seed is compared with its own run of one client."""
    found = {0: {"central": 0.9, "alike": 0.88, "dirichlet": 0.87}, 1: {"central": 0.8, "alike": 0.8, "dirichlet": 0.8}}
    for seed, runs in found.items():
        for place, accuracy in runs.items():
            folder = tmp_path / f"digits-{seed}" / place
            folder.mkdir(parents=True)
            report = {"test_accuracy": accuracy, "weights_that_travel": 7, "settings": {"rounds": 2}}
            (folder / federated.REPORT).write_text(json.dumps({**report, "rounds": [{"accuracy": 0.5}]}))
    monkeypatch.setattr(federated, "_seconds", lambda *given: 1.5)
    assert federated.main(["--work", str(tmp_path), "--format", "json", "--seeds", "0", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["below"] for row in found["rows"]] == pytest.approx([0.0, 1.0, 1.5])
    assert [row["accuracies"] for row in found["rows"]][1] == [0.88, 0.8]
    assert found["round_s"] == {"plain": 1.5, "secure aggregation": 1.5}
    assert found["versions"]["flwr"]


def test_a_private_run_is_six_numbers():
    assert federated.private_run("100,0.3,16,0.5,0.01,20") == (100, 0.3, 16, 0.5, 0.01, 20)


def test_budgets_of_single_examples(tmp_path, capsys):
    for seed, accuracy in ((0, 0.7), (1, 0.8)):
        folder = tmp_path / f"digits-{seed}" / "examples-4"
        folder.mkdir(parents=True)
        settings = {"rounds": 2, "dp": "example", "epsilon": 4.0, "sample": 0.5, "plan": "fast", "clients": 10}
        report = {
            "data": {"name": "digits", "train": 9, "test": 5}, "weights_that_travel": 7, "settings": settings,
            "test_accuracy": accuracy, "epsilon": 3.9, "rounds": [{"accuracy": 0.5, "epsilon": 3.9}],
        }  # fmt: skip
        (folder / federated.REPORT).write_text(json.dumps(report))
    given = ["--work", str(tmp_path), "--epsilons", "4", "--seeds", "0", "1"]
    assert federated_examples.main([*given, "--format", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["accuracy"], row["epsilon"]) == (pytest.approx(0.75), 3.9)
    assert row["noise"] == pytest.approx(noise_for(FederateSettings.of(settings)))
    assert federated_examples.main(given) == 0
    assert "0.7500" in capsys.readouterr().out
