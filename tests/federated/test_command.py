"""`blindformer federate`: the same as the function, with one JSON object out, and errors of one line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from blindformer import Plan
from blindformer.parties.cli.steps import warn_untrained
from blindformer.tests.levels import without_note
from blindformer.tests.patience import PATIENCE

pytest.importorskip("flwr", reason="the extra `federated` is not installed")
pytest.importorskip("sklearn", reason="scikit-learn ships the digits")

from blindformer.federated.command import show_result
from blindformer.federated.federate import Federated
from blindformer.federated.rounds import Round

QUICK = ("--data", "digits", "--clients", "3", "--rounds", "2", "--set", "layers=1")


@pytest.fixture
def call(call):
    return partial(call, "federate")


def test_a_folder_and_one_object(call, tmp_path):
    out = tmp_path / "out"
    options = ("--dp", "central", "--set", "noise=1", "--secagg", "--set", "alpha=0.5")
    code, printed, errors = call(*QUICK, *options, "--out", out, "--format", "json")
    assert (code, errors) == (0, "")
    report = json.loads(printed)
    assert report["folder"] == str(out)
    assert [r["number"] for r in report["rounds"]] == [1, 2]
    assert report["epsilon"] > 1
    assert {p.name for p in out.iterdir()} >= {"config.json", "model.safetensors", "plan.json", "calibration"}
    assert json.loads((out / "data.json").read_text())["name"] == "digits"


def test_a_process_of_its_own_prints_the_object_alone(tmp_path):
    """Flower logs every step, and sets its level when it is imported."""
    private = ["--dp", "example", "--set", "sample=0.05"]
    options = [*QUICK, "--rounds", "1", "--set", "hidden=8", *private, "--format", "json", "--out", tmp_path / "out"]
    command = [sys.executable, "-P", "-m", "blindformer", "federate", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
    assert without_note(done.stderr) == ""
    assert json.loads(done.stdout)["epsilon"] == pytest.approx(8.0, abs=0.1)


@pytest.fixture
def table(tmp_path):
    """Sentences in a file of somebody's own."""
    path = tmp_path / "mine.csv"
    rows = [f"it is {'good' if i % 2 else 'bad'}, my é {'the ' * (i // 2)};{['no', 'yes'][i % 2]}" for i in range(40)]
    path.write_text("what;how\n" + "\n".join(rows) + "\n", encoding="cp1252")
    return path


OWN = ("--text-column", "what", "--label-column", "how", "--encoding", "cp1252")


@pytest.mark.parametrize("own", [False, True])
def test_texts_are_trained_by_adapters_unless_told_otherwise(call, table, tiny_encoder, tmp_path, own):
    """With the plan that the model was trained with, or else one whose functions are close to its own."""
    model = shutil.copytree(tiny_encoder, tmp_path / "model")
    if own:
        Plan.preset("fast").save(model)
    out = tmp_path / "out"
    code, printed, errors = call("--data", table, *OWN, "--model", model, "--clients", "3", "--out", out)
    assert (code, errors) == (0, "")
    first = " ".join(" ".join(printed.split("\n\n")[0].split()).replace(f"{tmp_path}/", "").split())
    assert first == (
        "mine.csv: texts, 29 among 3 clients, alike; 3 to watch and calibrate by "
        f"plan {'fast' if own else 'faithful'} trained: adapters of rank 8 (LoRA) and the head of model "
        "10 rounds of 1 epoch fedavg updates are seen by the server"
    )
    settings = json.loads((out / "federation.json").read_text())["settings"]
    assert (settings["lora"], settings["rounds"]) == (8, 10)
    assert Plan.load(out).same_functions(Plan.preset("fast" if own else "faithful"))


def test_without_flower_the_extra_is_named_in_one_line(tmp_path):
    code = (
        "import sys; sys.modules['flwr'] = None\n"
        f"sys.argv = ['blindformer', 'federate', '--data', 'digits', '--out', {str(tmp_path / 'out')!r}]\n"
        "from blindformer.parties.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("run: pip install 'blindformer[federated]'\n")
    assert without_note(done.stderr).count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dp", "local", "--set", "noise=1", "--set", "epsilon=8"), "either says how much noise there is; leave one"),
        (("--set", "strategy=best"), "unknown strategy 'best'"),
        (("--set", "lora=2"), "one of images begins from nothing: leave lora out"),
        (("--node-config", "least-nose=1"), "node configuration: unknown key 'least-nose'; use "),
    ],
)
def test_what_cannot_be_is_one_line(call, table, tmp_path, arguments, message):
    given = [table if argument == "TABLE" else argument for argument in arguments]
    code, printed, errors = call(*QUICK, *given, "--out", tmp_path / "out")
    assert (code, printed) == (1, "")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_model_trained_with_a_plan_gets_no_warning_about_it(capsys):
    fast = Plan.preset("fast")
    warn_untrained(fast.replace(ranges={"encoder/gelu": (-1.0, 1.0)}), own=fast)
    assert capsys.readouterr().err == ""
    for own in (None, Plan.preset("faithful"), Plan.preset("he")):
        warn_untrained(fast, own)
        assert "note: plan fast is for models trained with it (distill, federate)" in capsys.readouterr().err


def shown(capsys, dp, *rounds):
    """What the command prints of these rounds."""
    report = {
        "settings": {"secagg": False, "dp": dp, "delta": 1e-5},
        "data": {"test": 3},
        "weights_that_travel": 7,
        "epsilon": rounds[-1].epsilon,
        "test_accuracy": 0.5,
    }
    show_result(Federated(Path("out"), Plan.preset("fast"), list(rounds), report), ["--data", "digits"])
    return capsys.readouterr().out


def test_a_clients_words_are_no_markup_and_stand_there_once(capsys):
    lost = {"[bold]ward": "[/red] it says"}
    printed = shown(capsys, "none", *(Round(n, 0.5, None, 2, {} if n == 3 else lost, None, 1.0) for n in range(1, 5)))
    assert "rounds 1-2, 4: [bold]ward: [/red] it says" in printed


def test_who_took_part_is_not_shown_where_it_is_a_secret(capsys):
    printed = shown(capsys, "central", Round(1, 0.5, None, None, {}, 2.5, None))
    assert printed.split()[11:17] == ["round", "accuracy", "epsilon", "1", "0.500", "2.50"]
    assert "epsilon 2.50 at delta 1e-05 protects a client's whole data from who sees the models" in printed
