"""The simulated service: what theory says of it, what becomes of every query, and what more machines do."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, replace

import pytest

pytest.importorskip("simpy")

from blindformer.bench.service_simulation import Demand, SimulatedFleet, simulate
from blindformer.bench.virtual import QueueingError
from blindformer.parties.reports.queueing import QueryCosts, busy_hour, erlang_c
from blindformer.tests.parties.reports.test_queueing import COSTS

EXPONENTIAL = [-math.log(1 - (number + 0.5) / 5000) for number in range(5000)]  # quantiles, of mean 1
ROOMY = SimulatedFleet(cores=4, workers=16, sessions=2000, queue=2000, dealer_workers=16)


# Theory.


@pytest.mark.parametrize(("workers", "utilisation"), [(1, 0.6), (4, 0.75)])
def test_exponential_service_waits_as_erlang_says(workers, utilisation):
    """M/M/c: workers that compute alone, each with a core, one second a query on average."""
    rate = utilisation * workers
    fleet = SimulatedFleet(cores=workers, workers=workers, sessions=5000, queue=5000)
    demand = Demand(seconds=15000 / rate, rate=rate, wait=math.inf, factors=EXPONENTIAL)
    result = simulate(QueryCosts(server_online=1.0), fleet, demand, seed=1)
    assert result.server_utilisation == pytest.approx(utilisation, rel=0.03)
    assert result.wait_mean_s == pytest.approx(erlang_c(workers, rate) / (workers - rate), rel=0.08)


def test_cores_that_queries_share_hold_as_many_as_theory_says():
    """M/G/1 with processor sharing: the mean latency is 1 / (1 - utilisation) seconds for a query of one second,
    however long queries differ."""
    fleet = SimulatedFleet(cores=1, workers=1000, sessions=5000)
    result = simulate(QueryCosts(server_online=1.0), fleet, Demand(15000, rate=0.5, wait=math.inf))
    assert result.latency_mean_s == pytest.approx(2.0, rel=0.06)


def test_clients_that_never_pause_keep_the_cores_busy():
    """Little: clients = throughput times latency; the throughput is cores over the CPU seconds of a query."""
    costs = replace(COSTS, offline_wait=0.0, online_wait=0.0, opening=0.0)
    fleet = SimulatedFleet(cores=2, workers=2, dealer_workers=2, one_machine=True)
    result = simulate(costs, fleet, Demand(seconds=400, clients=8))
    assert result.per_second == pytest.approx(2 / (costs.server + costs.client + costs.dealer), rel=0.05)
    assert result.per_second * result.latency_mean_s == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("cores", [2, 4, 16])
@pytest.mark.parametrize("utilisation", [0.1, 0.3, 0.6, 0.8])
def test_what_a_plan_reckons_with_is_never_much_too_short(cores, utilisation):
    """The product's formulas beside the simulation: at most a tenth too short, at most 2.5 times too long."""
    fleet = SimulatedFleet(cores=cores, workers=4 * cores, sessions=2000, queue=2000, dealer_workers=4 * cores)
    rate = utilisation * cores / COSTS.server
    seen = simulate(COSTS, fleet, Demand(seconds=4000 / rate, rate=rate, wait=math.inf))
    planned = busy_hour(COSTS, fleet, rate)
    for quantile in ("latency_p50_s", "latency_p95_s", "latency_p99_s"):
        assert 0.9 * getattr(seen, quantile) <= getattr(planned, quantile) <= 2.5 * getattr(seen, quantile)
    assert planned.server_utilisation == pytest.approx(seen.server_utilisation, rel=0.05)
    assert planned.dealer_utilisation == pytest.approx(seen.dealer_utilisation, rel=0.05)


# One query.


def test_a_query_alone_takes_what_it_costs():
    result = simulate(COSTS, ROOMY, Demand(seconds=20000, rate=1e-3))
    assert result.latency_p99_s == pytest.approx(COSTS.latency)
    assert COSTS.latency == pytest.approx(0.02 + (0.3 + 0.05) + (0.3 + 0.1))


def test_correlations_made_ahead_need_no_dealer():
    result = simulate(COSTS, ROOMY, Demand(seconds=20000, rate=1e-3, stored=1.0))
    assert result.latency_p50_s == pytest.approx(0.02 + 0.2 + 0.4)
    assert result.dealer_utilisation == 0


def test_in_one_session_correlations_are_made_while_a_query_runs():
    result = simulate(COSTS, ROOMY, Demand(seconds=100, clients=1))
    assert result.latency_p50_s == pytest.approx(0.4)  # the online phase: correlations take less


def test_a_link_is_shared_as_cores_are():
    costs = QueryCosts(down=1e6)  # a second of the link
    fleet = replace(ROOMY, uplink=8e6, workers=1000)
    alone = simulate(costs, fleet, Demand(seconds=20000, rate=1e-3))
    assert alone.latency_p50_s == pytest.approx(1.0)
    many = simulate(costs, fleet, Demand(seconds=8000, rate=0.5))
    assert many.uplink_utilisation == pytest.approx(0.5, rel=0.05)
    assert many.latency_mean_s > 1.7


# What becomes of all of them.


@pytest.mark.parametrize("seed", range(3))
def test_every_query_is_answered_or_told_to_come_back_or_lost(seed):
    """An overloaded service, whose servers fail all the time."""
    fleet = SimulatedFleet(replicas=2, cores=1, workers=1, sessions=6, queue=2, failure_s=40.0, restart_s=15.0)
    result = simulate(COSTS, fleet, Demand(seconds=600, rate=4.0, wait=5.0), seed)
    assert result.asked == result.answered + result.turned_away + result.lost
    assert 0 < result.turned_away <= result.retried <= result.asked
    assert result.lost > 0
    assert result.answered > 0


def test_whoever_is_told_to_come_back_does():
    fleet = SimulatedFleet(cores=1, workers=1, sessions=4, queue=1)
    result = simulate(COSTS, fleet, Demand(seconds=2000, rate=0.8, wait=600.0))
    assert result.retried > 0
    assert result.turned_away == result.lost == 0
    assert result.latency_p99_s > 1.0  # the least that a service tells them to wait


def test_a_server_that_fails_takes_one_answer_once():
    """Another server answers at the second attempt."""
    fleet = replace(ROOMY, replicas=4, failure_s=50.0, restart_s=5.0)
    result = simulate(COSTS, fleet, Demand(seconds=1000, rate=3.0))
    assert result.lost < 0.01 * result.asked
    assert result.latency_p99_s > simulate(COSTS, replace(fleet, failure_s=math.inf), Demand(1000, 3.0)).latency_p99_s


def test_a_seed_decides_everything():
    demand = Demand(seconds=300, rate=3.0)
    one, same, other = (simulate(COSTS, ROOMY, demand, seed) for seed in (1, 1, 2))
    assert asdict(one) == asdict(same) != asdict(other)


def test_more_servers_never_make_it_worse():
    results = [
        simulate(COSTS, replace(ROOMY, replicas=replicas, dealers=replicas), Demand(seconds=500, rate=6.0))
        for replicas in (1, 2, 4)
    ]
    latencies = [one.latency_p95_s for one in results]
    assert latencies == sorted(latencies, reverse=True)
    used = [one.server_utilisation for one in results]
    assert used == sorted(used, reverse=True)


# Errors.


def test_somebody_has_to_ask():
    with pytest.raises(QueueingError, match="nobody asks; give a rate or clients above 0"):
        simulate(COSTS, ROOMY, Demand(seconds=10))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "simpy", None)
    with pytest.raises(QueueingError, match=r"run: pip install simpy"):
        simulate(COSTS, ROOMY, Demand(seconds=10, rate=1))
