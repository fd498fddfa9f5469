"""Formulas of a busy service: what theory says, and what more machines do. tests/bench holds them to a simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from blindformer.parties.reports.queueing import Fleet, QueryCosts, busy_hour, erlang_c

COSTS = QueryCosts(
    server_offline=0.2,
    server_online=0.3,
    client_offline=0.1,
    client_online=0.25,
    dealer=0.3,
    offline_wait=0.05,
    online_wait=0.1,
    opening=0.02,
)


@pytest.mark.parametrize(("servers", "offered", "expected"), [(1, 0.6, 0.6), (2, 1.0, 1 / 3), (4, 3.0, 27 / 53)])
def test_erlangs_formula(servers, offered, expected):
    """M/M/1: the utilisation; M/M/2 and M/M/4 by hand."""
    assert erlang_c(servers, offered) == pytest.approx(expected)


def test_a_query_to_an_idle_fleet_takes_what_it_costs():
    idle = busy_hour(COSTS, Fleet(), rate=1e-6)
    assert idle.latency_p50_s == idle.latency_p99_s == pytest.approx(COSTS.latency)
    assert idle.wait_p95_s == 0


def test_one_worker_waits_as_mm1_does():
    """M/M/1 with a second a query, half busy: P(wait > t) = 0.5 exp(-t / 2)."""
    hour = busy_hour(QueryCosts(server_online=1.0), Fleet(cores=math.inf, workers=1), rate=0.5)
    assert hour.wait_p50_s == 0
    assert hour.wait_p95_s == pytest.approx(2 * math.log(0.5 / 0.05))


def test_more_than_a_fleet_can_take_never_ends():
    assert busy_hour(COSTS, Fleet(cores=2), rate=5.0).latency_p50_s == math.inf
    assert busy_hour(QueryCosts(down=1e6), Fleet(uplink=8e6), rate=1.0).latency_p95_s == math.inf


def test_preprocessed_correlations_need_no_dealer():
    hour = busy_hour(COSTS, Fleet(), rate=1.0, stored=1.0)
    assert hour.dealer_utilisation == 0
    assert hour.latency_p50_s < busy_hour(COSTS, Fleet(), rate=1.0).latency_p50_s


def test_more_of_anything_never_makes_it_worse():
    fleet = Fleet(cores=2, workers=4, dealer_workers=4, uplink=1e8)
    costs, rate = replace(COSTS, down=1e6, offline_bytes=2e6), 1.5
    base = busy_hour(costs, fleet, rate)
    for more in ({"replicas": 2}, {"dealers": 2}, {"cores": 4}, {"workers": 8}, {"uplink": 1e9}):
        better = busy_hour(costs, replace(fleet, **more), rate)
        assert better.latency_p95_s <= base.latency_p95_s, more
