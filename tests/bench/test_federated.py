"""The benchmark trains what is missing, and takes what is there."""

import json

import pytest

pytest.importorskip("flwr", reason="the extra `federated` is not installed")
pytest.importorskip("sklearn", reason="scikit-learn ships the digits")

from blindformer.bench import federated
from blindformer.federated.privacy import noise_for
from blindformer.federated.settings import FederateSettings

SETTINGS = {"rounds": 2, "dp": "example", "epsilon": 4.0, "sample": 0.5, "plan": "fast", "clients": 10}


def write_report(folder, **report):
    folder.mkdir(parents=True)
    report |= {"weights_that_travel": 7, "settings": SETTINGS, "rounds": [{"accuracy": 0.5, "epsilon": 3.9}]}
    (folder / federated.REPORT).write_text(json.dumps(report))


def test_rows_come_from_the_folders_that_are_there(tmp_path, measured, monkeypatch):
    """Each seed is compared with its own run of one client."""
    runs = {0: {"central": 0.9, "alike": 0.88, "dirichlet": 0.87}, 1: {"central": 0.8, "alike": 0.8, "dirichlet": 0.8}}
    for seed, accuracies in runs.items():
        for place, accuracy in accuracies.items():
            write_report(tmp_path / f"digits-{seed}" / place, test_accuracy=accuracy)
    monkeypatch.setattr(federated, "_round_seconds", lambda *given: 1.5)
    report = measured(federated, "--work", tmp_path, "--seeds", 0, 1)
    assert [row["below"] for row in report["rows"]] == pytest.approx([0.0, 1.0, 1.5])
    assert [row["accuracies"] for row in report["rows"]][1] == [0.88, 0.8]
    assert report["round_s"] == {"plain": 1.5, "secure aggregation": 1.5}
    assert report["versions"]["flwr"]
    table, seconds = federated.show(report)
    assert [str(cell) for cell in table.columns[1].cells] == ["0.8500", "0.8400", "0.8350"]
    assert seconds == "a round of one epoch: plain 1.50 s, secure aggregation 1.50 s"


def test_a_private_run_is_six_numbers():
    assert federated.private_run("100,0.3,16,0.5,0.01,20") == (100, 0.3, 16, 0.5, 0.01, 20)


def test_budgets_of_single_examples(tmp_path, measured, capsys):
    for seed, accuracy in ((0, 0.7), (1, 0.8)):
        folder = tmp_path / f"digits-{seed}" / "examples-4"
        write_report(folder, data={"name": "digits", "train": 9, "test": 5}, test_accuracy=accuracy, epsilon=3.9)
    words = ["--work", str(tmp_path), "--epsilons", "4", "--seeds", "0", "1"]
    (row,) = measured(federated, *words)["rows"]
    assert (row["accuracy"], row["epsilon"]) == (pytest.approx(0.75), 3.9)
    assert row["noise"] == pytest.approx(noise_for(FederateSettings.of(SETTINGS)))
    assert federated.main(words) == 0
    assert "0.7500" in capsys.readouterr().out
