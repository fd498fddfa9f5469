"""A service under load and its simulation, and a gateway: figures that agree with each other."""

from __future__ import annotations

import threading
import time

import pytest

pytest.importorskip("simpy")

from blindformer.bench import capacity, gateway, load
from blindformer.bench.service_simulation import Demand, SimulatedFleet, simulate
from blindformer.models.building import compile_folder
from blindformer.parties.reports.queueing import QueryCosts
from blindformer.tests.shared import clients

HERE = SimulatedFleet(cores=2, workers=2, dealer_workers=2, one_machine=True)
EXPECTED = QueryCosts(server_offline=1, server_online=2, client_offline=1, client_online=3, dealer=1)


def test_costs_are_those_of_one_client_alone():
    """CPU seconds as counted, in the expected proportion; the rest of its time is waiting."""
    single = {
        "cpu_s": {"server": 6.0, "client": 4.0, "dealer": 2.0},
        "queries": 100,
        "seconds": 10.0,
        "latency_twentieths_s": [0.08] * 10 + [0.12] * 9,
    }
    costs, factors = capacity.costs_alone(single, EXPECTED, HERE)
    assert (costs.server_offline, costs.server_online) == pytest.approx((0.02, 0.04))
    assert (costs.client_offline, costs.client_online, costs.dealer) == pytest.approx((0.01, 0.03, 0.02))
    assert sum(factors) / len(factors) == pytest.approx(1)
    alone = simulate(costs, HERE, Demand(100.0, clients=1, factors=factors))
    assert alone.latency_mean_s == pytest.approx(0.1, rel=0.03)


@pytest.mark.slow
def test_a_few_seconds_of_load_and_the_same_simulated(measured):
    report = measured(capacity, "--clients", 3, "--seconds", 5, "--single-seconds", 3, "--length", 8)
    single, many = (report["measured"][name] for name in ("single", "many"))
    assert (single["clients"], many["clients"]) == (1, 3)
    for name, phase in report["measured"].items():
        assert phase["wrong"] == 0
        assert phase["queries"] > 0
        assert phase["per_second"] == pytest.approx(phase["queries"] / phase["seconds"])
        assert phase["latency_p50_s"] <= phase["latency_p95_s"] <= phase["latency_max_s"]
        assert phase["fewest"] <= phase["queries"] / phase["clients"] <= phase["most"]
        assert phase["memory_max_mb"] == pytest.approx(max(phase["memory_mb"]), abs=0.1)
        simulated = report["simulated"][name]
        assert simulated["asked"] == simulated["answered"] > 0
        assert report["agreement"][name]["per_second"] == pytest.approx(simulated["per_second"] / phase["per_second"])
    # One client is what the simulation was told; how well it foresees many is for a quiet machine to say.
    assert report["agreement"]["single"]["per_second"] == pytest.approx(1, abs=0.15)


def test_the_table_of_a_load_sets_many_beside_one_and_wrong_answers_are_broken():
    figures = ("seconds", "queries", "per_second", "fewest", "most", "latency_p50_s", "latency_p95_s", "wrong", "busy")
    more = ("cpu_cores", "memory_idle_mb", "memory_max_mb", "memory_slope_mb_per_minute")
    phase = dict.fromkeys((*figures, *more), 2)
    report = {"model": "small", "length": 8, "plan": "faithful", "workers": 2, "ratio": 1.5}
    report |= {"single": {**phase, "clients": 1}, "many": {**phase, "clients": 3}}
    table, summary = load.show(report)
    assert [str(cell) for cell in table.columns[2].cells][2] == "2.00"
    assert summary == "3 clients reach 1.50 of what one reaches"
    assert load.broken(report) == "4 wrong answers"


def test_slope_is_of_the_second_half():
    rising = [(float(second), 10.0 * max(0, second - 10)) for second in range(20)]
    assert load._slope(rising) == pytest.approx(600)
    assert load._slope([(float(s), 0.0 if s < 10 else 5.0) for s in range(20)]) == pytest.approx(0)


def test_both_ways_to_a_gateway_are_measured(measured, tiny_encoder, tmp_path):
    compiled = compile_folder(tiny_encoder, tmp_path, lengths=[8], calibration=["how good my login is ."])
    report = measured(gateway, "--model", compiled, "--count", 2, "--pause", 0)
    assert report["direct_s"] > 0
    assert report["added_s"] == report["gateway_s"] - report["direct_s"]


class Heard:
    """A client whose other end is here."""

    listen = clients.ClientProcess.listen

    def __init__(self) -> None:
        self._pipe, self.its = clients.PROCESSES.Pipe()
        self.events: list[dict] = []

    def send(self, times: int) -> None:
        for _ in range(times):
            self.its.send({"event": "answered", "seconds": 0.1})
        self.its.close()


def test_a_client_that_sends_more_than_its_pipe_holds_is_heard():
    client = Heard()
    thread = threading.Thread(target=client.send, args=(3000,), daemon=True)
    thread.start()
    clients.hear([client], time.monotonic() + 1.0)
    assert len(client.events) == 3000
    thread.join()
