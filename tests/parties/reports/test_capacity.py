"""A plan for many users: its divisions, what makes it larger, and what the command says."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pytest
from blindformer.parties.reports.capacity import (
    CapacityError,
    Machines,
    Users,
    costs_of,
    most_memory,
    parse_queries,
    plan_capacity,
)
from blindformer.parties.reports.estimate import Estimate

PRICE = Estimate(
    rounds=100,
    up=4_000_000,
    down=5_000_000,
    online_bytes=9_000_000,
    dealt_bytes=20_000_000,
    passed_on_bytes=0,
    offline_bytes=20_000_000,
    held_bytes=20_000_000,
    setup_bytes=50_000_000,
    macs=0,
    layers=(),
    operations=(),
    network="lan",
    rtt_s=0.0005,
    bandwidth=1e9,
    setup_s=0.4,
    offline_s=0.5,
    online_s=0.6,
    compute_s={
        "server_offline": 0.1,
        "server_online": 0.3,
        "client_offline": 0.1,
        "client_online": 0.3,
        "dealer_offline": 0.2,
        "dealer_online": 0.0,
    },
)
USERS = Users(10_000, 20.0)
FAST = Machines(uplink=1e11)


# Rates.


@pytest.mark.parametrize(
    ("text", "per_day"), [("20/day", 20), ("3/hour", 72), ("2/minute", 2880), ("0.5/second", 43200)]
)
def test_a_rate_is_a_number_and_a_unit(text, per_day):
    assert parse_queries(text) == per_day


@pytest.mark.parametrize("text", ["20", "20 a day", "/day", "-3/day", "0/day", "20/week", "1e3/day", "nan/day", ""])
def test_another_rate_is_refused(text):
    with pytest.raises(CapacityError, match=r"give a number above 0 and a unit, such as 20/day or 3/hour"):
        parse_queries(text)


def test_the_busiest_hour_has_its_part_of_a_day():
    assert USERS.a_day == 200_000
    assert USERS.a_second == pytest.approx(20_000 / 3600)


def test_correlations_kept_ready_serve_so_many_of_the_busiest_hour():
    """Users differ: two on average is three for some and one for others."""
    stored = [Users(1, 20.0, ahead=ahead).stored for ahead in (0, 1, 2, 100)]
    assert stored == pytest.approx([0.0, (1 - math.exp(-2)) / 2, (2 - 4 * math.exp(-2)) / 2, 1.0])


# The plan.


def test_costs_are_those_of_the_price():
    costs = costs_of(PRICE)
    assert costs.worker_s == pytest.approx(PRICE.offline_s + PRICE.online_s)
    assert costs.latency == pytest.approx(PRICE.offline_s + PRICE.online_s + 6 * PRICE.rtt_s)


def test_a_plan_is_a_few_divisions():
    plan = plan_capacity(PRICE, USERS, FAST)
    rate = USERS.a_second
    assert plan.server.machines == 2  # at least; the work is that of rate * 0.4 / (4 * 0.6) = 0.93 of one
    assert plan.server.workers == max(4, math.ceil(rate / 1 * 1.1 / 0.6))  # Little, while one of the two is away
    assert plan.day_bytes == 200_000 * 29e6
    assert plan.sent_bytes == 200_000 * 25e6
    assert plan.first_bytes == 10_000 * 50e6
    assert plan.disk_bytes == 0
    machines = plan.server.machines + plan.dealer.machines
    assert plan.money_a_day == pytest.approx(24 * 0.05 * 4 * machines + 0.08 * 200_000 * 25e6 / 1e9)
    assert plan.money_a_thousand == pytest.approx(plan.money_a_day / 200)
    assert plan.server.peak_bits * plan.server.machines == pytest.approx(8 * rate * 24e6)


def test_the_busiest_hour_keeps_the_bound():
    plan = plan_capacity(PRICE, USERS, FAST)
    assert plan.within_s == pytest.approx(2 * plan.alone_s)
    assert plan.alone_s <= plan.busiest.latency_p50_s <= plan.busiest.latency_p95_s <= plan.within_s
    assert plan.busiest.server_utilisation <= 0.6


def test_a_tighter_bound_takes_more_servers():
    many, crowded = replace(USERS, users=100_000), replace(FAST, utilisation=0.95)
    loose, tight = (plan_capacity(PRICE, many, crowded, within=within) for within in (20.0, 3.5))
    assert tight.server.machines > loose.server.machines
    assert tight.busiest.latency_p95_s <= 3.5


def test_a_narrow_uplink_takes_more_servers():
    wide, narrow = (plan_capacity(PRICE, USERS, replace(FAST, uplink=uplink)) for uplink in (1e11, 5e8))
    assert narrow.server.machines > wide.server.machines
    assert narrow.busiest.uplink_utilisation <= 0.6


def test_what_is_made_ahead_is_made_day_and_night():
    live, ahead = (plan_capacity(PRICE, replace(USERS, users=100_000, ahead=ahead), FAST) for ahead in (0, 10))
    assert ahead.disk_bytes == 100_000 * 10 * 20e6
    assert ahead.dealer.machines < live.dealer.machines
    assert ahead.alone_s < live.alone_s


def test_more_users_take_more_of_everything():
    few, many = (plan_capacity(PRICE, replace(USERS, users=users), FAST) for users in (10_000, 1_000_000))
    assert many.server.machines == pytest.approx(100 * USERS.a_second * 0.4 / 2.4, rel=0.01)
    assert many.money_a_thousand <= few.money_a_thousand


def test_a_bound_below_one_query_is_refused():
    with pytest.raises(CapacityError, match=r"within 0.5 s: one query alone takes 1.10 s; allow more"):
        plan_capacity(PRICE, USERS, FAST, within=0.5)


@pytest.mark.parametrize(
    ("users", "rented", "named"),
    [
        (replace(USERS, peak=2.0), FAST, "peak 2"),
        (replace(USERS, users=0), FAST, "users 0"),
        (USERS, replace(FAST, utilisation=1.0), "utilisation 1"),
    ],
)
def test_a_number_out_of_range_is_named(users, rented, named):
    with pytest.raises(CapacityError, match=f"{named}: out of range"):
        plan_capacity(PRICE, users, rented)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_is_what_the_work_took():
    result, grown = most_memory(lambda: len(bytearray(80_000_000)))
    assert result == 80_000_000
    assert 70e6 < grown < 120e6


# The command.


def test_the_command_plans_for_many(call, tiny_classifier):
    words = ("estimate", tiny_classifier, "--length", 8, "--users", 10000, "--queries", "20/day")
    code, out, errors = call(*words, "--format", "json")
    assert code == 0, errors
    report = json.loads(out)
    plan = report["capacity"]
    assert plan["users"] == {"users": 10000, "queries": 20.0, "peak": 0.1, "ahead": 0}
    assert plan["day_bytes"] == 200_000 * (report["online_bytes"] + report["offline_bytes"])
    assert plan["busiest"]["latency_p95_s"] <= plan["within_s"]
    code, out, errors = call(*words, "--cores", 2, "--ahead", 3, "--gb", 0.01)
    assert code == 0, errors
    assert "10,000 users, 20 queries a day each: 200,000 a day" in out
    for word in ("server", "dealer", "network", "disk", "money", "busiest", "waits", "in use"):
        assert word in out


WRONG = {
    "no unit": (("--users", 5, "--queries", "20"), "queries 20: not a rate; give a number above 0 and a unit"),
    "another protocol": (("--users", 5, "--protocol", "crypten"), "--users: does not go with --protocol crypten"),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_line_says_what_is_wrong(refused, tiny_classifier, case):
    words, expected = WRONG[case]
    assert expected in refused("estimate", tiny_classifier, *words)
