"""The same run by Flower's deployment engine: TLS, nodes with keys, processes that are killed. A minute or two."""

import json
import os
import signal
import threading
import time

import pytest
from blindformer.federated.deploy import Deployment, deploy, new_node_key
from blindformer.federated.federate import REPORT, federate
from blindformer.federated.settings import FederateError, Settings

pytest.importorskip("sklearn", reason="scikit-learn ships the digits")

SETTINGS = {"clients": 3, "rounds": 2, "epochs": 1, "hidden": 16, "layers": 1, "timeout": 120.0}


@pytest.mark.slow
def test_a_deployment_gives_what_the_simulation_gives_and_survives_a_node(tmp_path):
    """One node is killed when it has begun, another that nobody registered is never asked."""
    settings, out = Settings(**SETTINGS), tmp_path / "out"
    simulated = federate(tmp_path / "simulated", **SETTINGS)
    with Deployment(settings, tmp_path) as run:
        run.start()
        run.start_node(7, registered=False)
        stranger = run.processes.pop("node 7")
        victim = run.processes["node 1"]

        def kill() -> None:
            time.sleep(3)
            os.killpg(victim.pid, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        run.submit(out)
        run.wait(out, None)
        thread.join()
        assert run.deaths["node 1"] >= 1
        os.killpg(stranger.pid, signal.SIGKILL)
        stranger.wait()
    report = json.loads((out / REPORT).read_text())
    assert max(r["clients"] for r in report["rounds"]) <= 3
    # How soon the SuperLink takes the node back is its own matter: the round goes on without it, or waits for it.
    assert report["rounds"][-1]["clients"] >= 2, report["rounds"][-1]["lost"]
    if all(r["clients"] == 3 for r in report["rounds"]):  # nobody's message was lost with the node
        assert report["rounds"][-1]["loss"] == pytest.approx(simulated.rounds[-1].loss, abs=1e-3)


def test_a_nodes_key_is_for_its_owner_alone(tmp_path):
    public = new_node_key(tmp_path / "node.key")
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600
    assert public.read_text().startswith("ecdsa-sha2-nistp384 ")
    with pytest.raises(FileExistsError):
        new_node_key(tmp_path / "node.key")


def test_a_finished_folder_is_left_alone(tmp_path):
    (tmp_path / REPORT).write_text("{}")
    with pytest.raises(FederateError, match="holds a model already; give a new folder"):
        deploy(tmp_path, **SETTINGS)
