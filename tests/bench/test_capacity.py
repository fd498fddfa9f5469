"""A service under load and its simulation: figures that agree with each other, and costs of one client alone."""

import io
import json
import threading
import time
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")
pytest.importorskip("simpy")

from blindformer.bench import capacity
from blindformer.bench.service_simulation import Demand, SimulatedFleet, simulate
from blindformer.parties.reports.queueing import QueryCosts
from blindformer.tests.shared import clients

HERE = SimulatedFleet(cores=2, workers=2, dealer_workers=2, one_machine=True)
EXPECTED = QueryCosts(server_offline=1, server_online=2, client_offline=1, client_online=3, dealer=1)


def test_costs_are_those_of_one_client_alone():
    """CPU seconds as counted, in the expected proportion; the rest of its time is waiting."""
    found = SimpleNamespace(
        cpu_s={"server": 6.0, "client": 4.0, "dealer": 2.0},
        queries=100,
        seconds=10.0,
        latency_twentieths_s=[0.08] * 10 + [0.12] * 9,
    )
    costs, factors = capacity.costs_alone(found, EXPECTED, HERE)
    assert (costs.server_offline, costs.server_online) == pytest.approx((0.02, 0.04))
    assert (costs.client_offline, costs.client_online, costs.dealer) == pytest.approx((0.01, 0.03, 0.02))
    assert sum(factors) / len(factors) == pytest.approx(1)
    alone = simulate(costs, HERE, Demand(100.0, clients=1, factors=factors))
    assert alone.latency_mean_s == pytest.approx(0.1, rel=0.03)


@pytest.mark.slow
def test_a_few_seconds() -> None:
    stdout = io.StringIO()
    arguments = ["--clients", "3", "--seconds", "5", "--single-seconds", "3", "--length", "8", "--format", "json"]
    with redirect_stdout(stdout):
        assert capacity.main(arguments) == 0
    found = json.loads(stdout.getvalue())
    for name, load in found["measured"].items():
        simulated = found["simulated"][name]
        assert simulated["asked"] == simulated["answered"] > 0
        assert found["agreement"][name]["per_second"] == pytest.approx(simulated["per_second"] / load["per_second"])
    # One client is what the simulation was told; how well it foresees many is for a quiet machine to say.
    assert found["agreement"]["single"]["per_second"] == pytest.approx(1, abs=0.15)


class Told:
    """A client whose other end is here."""

    listen = clients.ClientProcess.listen

    def __init__(self) -> None:
        self._pipe, self.its = clients.PROCESSES.Pipe()
        self.events: list[dict] = []

    def tell(self, times: int) -> None:
        for _ in range(times):
            self.its.send({"event": "answered", "seconds": 0.1})
        self.its.close()


def test_a_client_that_tells_more_than_its_pipe_holds_is_heard():
    client = Told()
    thread = threading.Thread(target=client.tell, args=(3000,), daemon=True)
    thread.start()
    clients.hear([client], time.monotonic() + 1.0)
    assert len(client.events) == 3000
    thread.join()
