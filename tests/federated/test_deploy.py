"""The same run by Flower's deployment engine: TLS, nodes with keys, processes that are killed. Two minutes or three."""

import json
import os
import signal

import psutil
import pytest
import torch
from blindformer.federated import deploy as deployment
from blindformer.federated.deploy import Deployment, Simulation, deploy, new_node_key, simulate
from blindformer.federated.federate import REPORT, WORK, federate
from blindformer.federated.server import FAILURE
from blindformer.federated.settings import FederateError, FederateSettings
from blindformer.models.distillation.settings import DistillError
from blindformer.models.loading.load import load
from blindformer.tests.patience import PATIENCE

pytest.importorskip("sklearn", reason="scikit-learn ships the digits")

SETTINGS = {"clients": 2, "rounds": 2, "epochs": 1, "hidden": 16, "layers": 1, "timeout": 120.0}


@pytest.mark.slow
def test_a_deployment_gives_what_the_simulation_gives_and_survives_kills(tmp_path):
    """The SuperLink is killed after the first round, a node after the second; one that nobody registered is never
    asked."""
    wanted = {**SETTINGS, "rounds": 3}
    simulated, out = federate(tmp_path / "simulated", **wanted), tmp_path / "out"
    with Deployment(FederateSettings(**wanted), tmp_path) as run:

        def kill(made, total):
            name = {1: "superlink", 2: "node 1"}.get(made.number)
            if name:
                os.killpg(run.processes[name].pid, signal.SIGKILL)

        run.start()
        run.start_node(7, registered=False)
        stranger = run.processes.pop("node 7")
        run.submit(out)
        run.wait(out, kill)
        assert run.deaths["superlink"] == 1
        assert run.deaths["node 1"] >= 1
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait()
    rounds = json.loads((out / REPORT).read_text())["rounds"]
    assert [r["number"] for r in rounds] == [1, 2, 3]
    for made, like in zip(rounds[:2], simulated.rounds, strict=False):  # to the bit, across the SuperLink's death
        assert (made["loss"], made["accuracy"], made["clients"]) == (like.loss, like.accuracy, 2), made["lost"]
    # How soon the SuperLink takes the node back is its own matter: the round goes on without it, or waits for it.
    assert rounds[2]["clients"] >= 1, rounds[2]["lost"]


def test_a_run_that_is_over_without_a_result_is_not_waited_for(tmp_path, monkeypatch):
    """Its app never came to say why: a library that nodes lack, say. What still runs is waited for."""
    run = Deployment(FederateSettings(**SETTINGS), tmp_path)
    states = [{"status": "running", "status-details": "N/A"}, {"status": "finished:failed", "status-details": "no Ray"}]
    monkeypatch.setattr(run, "_flwr", lambda *words: {"success": True, "runs": [states.pop(0)]})
    monkeypatch.setattr(deployment, "QUIET", 0.0)
    with pytest.raises(FederateError, match="the run ended without a result: no Ray"):
        run.wait(tmp_path / "out", None)
    assert not states


def orphaned(run, name):
    """Start a process that starts one in a session of its own, and is gone."""
    child = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)"
    run._start(name, ["python", "-c", child])
    run.processes[name].wait()
    return psutil.Process(int(run.log(name)))


def test_what_a_dead_superlink_leaves_running_is_ended_and_not_believed(tmp_path, monkeypatch):
    """Its app has a session of its own: it would hold the folder, and call the run failed for want of a SuperLink."""
    run, out = Deployment(FederateSettings(**SETTINGS), tmp_path), tmp_path / "out"
    app = orphaned(run, "superlink")
    (out / WORK).mkdir(parents=True)
    (out / WORK / FAILURE).write_text('{"error": "connection refused"}')
    submitted = []

    def submit(out):
        assert not app.is_running()
        assert not (out / WORK / FAILURE).exists()
        submitted.append(out)
        (out / WORK).rmdir()
        (out / REPORT).write_text("{}")

    monkeypatch.setattr(run, "_again", lambda name: None)
    monkeypatch.setattr(run, "_await_link", lambda: None)
    monkeypatch.setattr(run, "submit", submit)
    run.wait(out, None)
    assert submitted == [out]


def test_leaving_a_deployment_ends_what_its_processes_have_started(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    with Deployment(FederateSettings(**SETTINGS), tmp_path) as run:
        left, others = (
            orphaned(run, "superlink"),
            orphaned(Deployment(FederateSettings(**SETTINGS), other), "superlink"),
        )
    assert not left.is_running()
    assert others.is_running()
    others.kill()


@pytest.mark.slow
def test_rays_workers_give_what_one_process_gives(tmp_path):
    pytest.importorskip("ray", reason="the extra `simulation` is not installed")
    wanted = {**SETTINGS, "timeout": PATIENCE}  # Ray starts its workers within the first round
    here = federate(tmp_path / "here", **wanted)
    found = simulate(tmp_path / "ray", **wanted)
    assert [(r.loss, r.accuracy) for r in found.rounds] == [(r.loss, r.accuracy) for r in here.rounds]
    weights, like = (load(f.folder).model.state_dict() for f in (found, here))
    assert all(torch.equal(weights[name], like[name]) for name in like)


@pytest.mark.parametrize(("named", "address"), [("", "local"), ("10.0.0.1:6379", "10.0.0.1:6379")])
def test_a_simulation_joins_no_cluster_that_nobody_named(tmp_path, monkeypatch, named, address):
    """Ray would take any that was started on this machine, which may have no room, or end."""
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert Simulation(FederateSettings(**SETTINGS), tmp_path)._environment()["RAY_ADDRESS"] == address


def test_a_nodes_key_is_for_its_owner_alone(tmp_path):
    public = new_node_key(tmp_path / "node.key")
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    assert public.read_text().startswith("ecdsa-sha2-nistp384 ")
    with pytest.raises(FileExistsError):
        new_node_key(tmp_path / "node.key")


def test_a_finished_folder_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DistillError, match="holds a model already; give a new folder"):
        deploy(tmp_path, **SETTINGS)
