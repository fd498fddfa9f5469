"""The same run by Flower's deployment engine: TLS, nodes with keys, processes that end."""

import json
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from blindformer.federated import deploy as deployment
from blindformer.federated.deploy import Deployment, deploy, new_node_key
from blindformer.federated.federate import REPORT, WORK, federate
from blindformer.federated.rounds import Round
from blindformer.federated.server import FAILURE
from blindformer.federated.settings import FederateError, FederateSettings
from blindformer.models.distillation_settings import DistillError

pytest.importorskip("sklearn", reason="scikit-learn ships the digits")


def new(folder: Path) -> Path:
    folder.mkdir()
    return folder


def interrupted(latest: Round, total: int) -> None:
    raise InterruptedError


SETTINGS = {"clients": 2, "rounds": 2, "epochs": 1, "hidden": 16, "layers": 1, "timeout": 120.0}


@pytest.fixture(scope="module")
def in_one_process(tmp_path_factory):
    return federate(tmp_path_factory.mktemp("federated") / "out", **SETTINGS)


@pytest.mark.slow
def test_a_deployment_gives_what_one_process_gives_also_where_it_resumes(in_one_process, tmp_path):
    """To the bit, after a first round that was made in one process. A node that nobody registered is never asked. What
    an app that lost its SuperLink has written is not the error of the run that resumes."""
    out = tmp_path / "out"
    with pytest.raises(InterruptedError):
        federate(out, progress=interrupted, **SETTINGS)
    (out / WORK / FAILURE).write_text('{"error": "connection refused"}')
    with Deployment(FederateSettings(**SETTINGS), new(tmp_path / "nodes")) as run:
        run.start()
        run.start_node(7, registered=False)
        run.submit(out)
        run.wait(out, None)
    rounds = [Round(**row) for row in json.loads((out / REPORT).read_text())["rounds"]]
    assert [replace(r, seconds=None) for r in rounds] == [replace(r, seconds=None) for r in in_one_process.rounds]


def test_a_run_that_is_over_without_a_result_is_not_waited_for(tmp_path, monkeypatch):
    """Its app never came to say why: a library that nodes lack, say. What still runs is waited for."""
    run = Deployment(FederateSettings(**SETTINGS), tmp_path)
    states = [{"status": "running", "status-details": "N/A"}, {"status": "finished:failed", "status-details": "no Ray"}]
    monkeypatch.setattr(run, "_flwr", lambda *words: {"success": True, "runs": [states.pop(0)]})
    monkeypatch.setattr(deployment, "QUIET", 0.0)
    with pytest.raises(FederateError, match="the run ended without a result: no Ray"):
        run.wait(tmp_path / "out", None)
    assert not states


def test_the_end_of_the_superlink_or_of_all_nodes_ends_the_command(tmp_path):
    """Rounds go on without a node that has ended."""
    with Deployment(FederateSettings(**SETTINGS), tmp_path) as run:

        def end(name):
            run.processes[name].kill()
            run.processes[name].wait()

        for name in ("superlink", "node 0", "node 1"):
            run._start(name, ["python", "-c", "import time; print('out of memory', flush=True); time.sleep(1000)"])
            while "out of memory" not in run.log(name):
                time.sleep(0.1)
        end("node 0")
        run._check_processes()
        end("node 1")
        with pytest.raises(FederateError, match=r"all SuperNodes have ended \(out of memory\); run the same"):
            run.wait(tmp_path / "out", None)
        end("superlink")
        with pytest.raises(FederateError, match=r"the SuperLink has ended \(out of memory\); run the same"):
            run.wait(tmp_path / "out", None)


def test_leaving_a_deployment_ends_what_its_processes_have_started(tmp_path):
    """Also what is in a session of its own, and whose parent is gone."""

    def orphan(run):
        child = "import subprocess; print(subprocess.Popen(['sleep', '1000'], start_new_session=True).pid)"
        run._start("superlink", ["python", "-c", child])
        run.processes["superlink"].wait()
        return psutil.Process(int(run.log("superlink")))

    other = tmp_path / "other"
    other.mkdir()
    with Deployment(FederateSettings(**SETTINGS), tmp_path) as run:
        left, others = orphan(run), orphan(Deployment(FederateSettings(**SETTINGS), other))
    assert not left.is_running()
    assert others.is_running()
    others.kill()


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
