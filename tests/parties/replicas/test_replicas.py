"""Replicas on a Ray cluster of two nodes: replaced, killed with their node, and drained, without a lost query."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from blindformer.models.building import compile_folder
from blindformer.parties.bulk.job import BulkJob
from blindformer.parties.client.client import Client
from blindformer.parties.session.spool import Spool
from blindformer.tests.shared.deployment import Running, command, eventually

ray = pytest.importorskip("ray", reason="replicas need Ray: pip install 'blindformer[scale]'")
TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]


@pytest.fixture(scope="module")
def lose_node() -> Iterator[Callable[[], None]]:
    """A cluster of two nodes; what is called kills one of them."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 6})
    other = made.add_node(num_cpus=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", made.address)
        yield lambda: made.remove_node(other, allow_graceful=False)
    ray.shutdown()
    made.shutdown()


def start(*words: object) -> Running:
    shared = ("--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--log-format", "json", "--workers", "1")
    running = Running(command(*map(str, (*words, "--engine", "ray", *shared))), program=True)
    running.wait_for("ready")
    return running


def replicas(name: str) -> set[int]:
    """Processes of them that were not forked for a session."""
    found = {
        one.info["pid"]: one.info["ppid"] for one in psutil.process_iter(["pid", "ppid"]) if _is_replica(one, name)
    }
    return {pid for pid, parent in found.items() if parent not in found}


def _is_replica(process: psutil.Process, name: str) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return words[2:4] == ["blindformer", name] and "--lifeline" in words and "--config" in words


@pytest.mark.slow
def test_replicas_are_replaced_killed_and_drained_without_a_lost_query(
    lose_node, certificates, postgres, tiny_classifier, tmp_path: Path
):
    compiled, url, spool = tmp_path / "compiled", postgres.new(), tmp_path / "spool"
    compile_folder(tiny_classifier, compiled, lengths=[8])
    dealer = start("dealer", "--certs", certificates, "--replicas", 2)
    server = start(
        *("serve", compiled / "server", "--certs", certificates, "--dealer", "{}:{}".format(*dealer.address)),
        *("--replicas", 2, "--spool", spool, "--database", url),
    )
    address = {"server": "{}:{}".format(*server.address), "dealer": "{}:{}".format(*dealer.address)}
    try:

        def ask(count: int) -> list[str]:
            with Client(**address, folder=compiled, certificates=certificates, wait=60.0) as client:
                return [client.query(TEXTS[number % 4]).value[0]["label"] for number in range(count)]

        right, first = ask(4), replicas("serve")
        assert len(first) == len(replicas("dealer")) == 2
        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(ask, 60) for _ in range(2)]
            server.send(signal.SIGHUP)
            eventually(lambda: len(now := replicas("serve")) == 2 and not now & first, "replaced")
            assert all(one.result() == right * 15 for one in asking), "a rolling update loses no query"

        before = {name: replicas(name) for name in ("serve", "dealer")}
        lose_node()
        eventually(lambda: before["serve"] - replicas("serve"), "a replica was on that node")
        assert ask(8) == right * 2
        for name in before:
            eventually(lambda name=name: len(replicas(name)) == 2, "those of the node are started elsewhere")

        job = BulkJob(
            _table(tmp_path),
            tmp_path / "out.jsonl",
            lambda: Client(**address, folder=compiled, certificates=certificates, wait=60.0),
            engine="ray",
            sessions=2,
        )
        report = job.run()
        assert (report.answered, report.failed) == (200, 0)
        uses = Spool(spool, database=url).ledger.audit()
        assert len(uses) == len({tag for tag, _, _ in uses}) == len({use[1:] for use in uses})
    finally:
        codes = [server.stop(), dealer.stop()]
    assert codes == [0, 0]
    eventually(lambda: not replicas("serve") | replicas("dealer"), "drained")


def _table(folder: Path) -> Path:
    file = folder / "in.txt"
    file.write_text("".join(f"{TEXTS[number % 4]}\n" for number in range(200)))
    return file
