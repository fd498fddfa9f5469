"""Replicas on a Ray cluster of two nodes: replaced, killed with their node, and drained, without a lost query."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from blindformer.models.building import compile_folder
from blindformer.parties.bulk.job import BulkJob
from blindformer.parties.client.client import Client
from blindformer.parties.session.spool import Spool
from blindformer.tests.patience import PATIENCE
from blindformer.tests.shared import deployment
from blindformer.tests.shared.deployment import Running, command

ray = pytest.importorskip("ray", reason="replicas need Ray: pip install 'blindformer[scale]'")
ROWS = 60
TEXTS = ["how is my password ?", "not good , bad !", "the password is lost .", "what a good red !"]


@pytest.fixture(scope="module")
def lose_node() -> Iterator[Callable[[], None]]:
    """A cluster of two nodes; what is called kills one of them."""
    from ray.cluster_utils import Cluster

    # Ray starts a process for each CPU at once: as few as there is work for, all of it on the head in the end.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 6})
    other = cluster.add_node(num_cpus=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield lambda: cluster.remove_node(other, allow_graceful=False)
    ray.shutdown()
    cluster.shutdown()


def start(*words: object) -> Running:
    shared = ("--metrics", "127.0.0.1:0", "--log-format", "json", "--workers", "1", "--engine", "ray", "--replicas", 2)
    return Running(command(*map(str, (*words, *shared))), program=True)


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """As the harness's, with pauses: to look at all processes of this machine takes time of theirs."""
    return deployment.eventually(condition, what, pause=0.5)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.slow
def test_replicas_are_replaced_killed_and_drained_without_a_lost_query(
    lose_node, certificates, postgres, tiny_classifier, tmp_path: Path
):
    def replicas(name: str) -> set[int]:
        return deployment.replicas(name, certificates)

    compiled, url, spool = tmp_path / "compiled", postgres.new(), tmp_path / "spool"
    compile_folder(tiny_classifier, compiled, lengths=[8])
    address, replaced = {name: f"127.0.0.1:{free_port()}" for name in ("server", "dealer")}, threading.Event()
    dealer = start("dealer", "--certs", certificates, "--listen", address["dealer"])
    server = start(
        *("serve", compiled / "server", "--certs", certificates, "--dealer", address["dealer"]),
        *("--listen", address["server"], "--spool", spool, "--database", url),
    )
    try:
        for running in (dealer, server):  # they start side by side
            running.wait_for("ready")

        def ask(client: Client) -> list[str]:
            return [client.query(text).value[0]["label"] for text in TEXTS]

        def client() -> Client:
            return Client(**address, folder=compiled, certificates=certificates, wait=PATIENCE)

        def ask_until_replaced() -> Iterator[list[str]]:
            with client() as asking:
                while not replaced.is_set():
                    yield ask(asking)
                yield ask(asking)

        with client() as first_client:
            right = ask(first_client)
        eventually(lambda: len(replicas("serve")) == len(replicas("dealer")) == 2, "as many as ordered")
        first = replicas("serve")
        with ThreadPoolExecutor(2) as pool:
            asking = [pool.submit(lambda: list(ask_until_replaced())) for _ in range(2)]
            server.send(signal.SIGHUP)
            try:
                eventually(lambda: len(now := replicas("serve")) == 2 and not now & first, "replaced")
            finally:
                replaced.set()
            for one in asking:
                answers = one.result()
                assert len(answers) > 2
                assert all(answer == right for answer in answers), "a rolling update loses no query"

        before = {name: replicas(name) for name in ("serve", "dealer")}
        lose_node()
        eventually(lambda: before["serve"] - replicas("serve"), "a replica was on that node")
        with client() as next_client:
            assert ask(next_client) + ask(next_client) == right * 2
        for name in before:
            eventually(lambda name=name: len(replicas(name)) == 2, "those of the node are started elsewhere")

        job = BulkJob(_table(tmp_path), tmp_path / "out.jsonl", client, engine="ray", sessions=2)
        report = job.run()
        assert (report.answered, report.failed) == (ROWS, 0)
        uses = Spool(spool, database=url).ledger.audit()
        assert len(uses) == len({tag for tag, _, _ in uses}) == len({use[1:] for use in uses})
    finally:
        codes = [server.stop(), dealer.stop()]
    assert codes == [0, 0]
    eventually(lambda: not replicas("serve") | replicas("dealer"), "drained")


def _table(folder: Path) -> Path:
    file = folder / "in.txt"
    file.write_text("".join(f"{TEXTS[number % 4]}\n" for number in range(ROWS)))
    return file
