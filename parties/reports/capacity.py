"""A service for many users: machines, network, disk and money, from the cost of one query.

The plan is a few divisions (docs/scale.md); queueing.py says how long its busiest hour's answers take while one server
is away, and the plan takes more servers until they come in time. Each party is on machines of its own, as this one is.
All prices are the caller's.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ...protocols.errors import BlindformerError
from ..session.online import peak_rss_mb, rss_mb
from .estimate import Estimate
from .queueing import BusyHour, Fleet, QueryCosts, busy_hour

T = TypeVar("T")
DAY, HOUR = 86400.0, 3600.0
PER_DAY = {"second": DAY, "minute": 1440.0, "hour": 24.0, "day": 1.0}
OPENING_TRIPS = 6  # round trips of opening a session: TCP, TLS and the hello, with the dealer and with the server
# Measured (bench.load's memory_idle_mb, of two services; service/admission.py): a service with nobody in it, and
# an open session that computes nothing.
SERVICE_BYTES, SESSION_BYTES = 250e6, 6e6
MOST_WORKERS, MOST_SESSIONS = 1024, 10_000  # that a service may be set to
LEAST_SESSIONS = 32  # the service's own default
PROMPTLY = 2.0  # the bound of the 95th percentile unless one is given, in latencies of a query to an idle service
MORE = 1.1  # times as many servers are tried next
MOST_TRIES = 50
LEAST_MACHINES = 2  # of each party: one may fail


class CapacityError(BlindformerError):
    """A plan for many users that cannot be made."""


@dataclass(frozen=True)
class Users:
    """`queries`: of each in a day; `peak`: the part of a day's queries that comes in the busiest hour; `ahead`: queries
    of each whose correlations are kept ready."""

    users: int
    queries: float
    peak: float = 0.1
    ahead: int = 0

    @property
    def a_day(self) -> float:
        return self.users * self.queries

    @property
    def a_second(self) -> float:
        """In the busiest hour."""
        return self.a_day * self.peak / HOUR

    @property
    def stored(self) -> float:
        """The part of the busiest hour's queries that find correlations ready: of a user who asks Poisson's number."""
        mean = self.queries * self.peak
        some, few = math.exp(-mean), 0.0  # P(n), and the mean of what is left unused, from n = 0
        for asked in range(self.ahead):
            few += (self.ahead - asked) * some
            some *= mean / (asked + 1)
        return min(1.0, (self.ahead - few) / mean)


@dataclass(frozen=True)
class Machines:
    """The rented machines, and their price. `utilisation`: of cores and of the uplink, in the busiest hour; `uplink`:
    bits a second, each way. `core_hour`, `gb`: prices of a core for an hour and of 10^9 bytes that leave a machine, in
    any unit of money. The defaults are examples of what is asked for rented machines, and nobody's offer."""

    cores: int = 4
    utilisation: float = 0.6
    uplink: float = 1e10
    core_hour: float = 0.05
    gb: float = 0.08


@dataclass(frozen=True)
class PartyNeeds:
    """One party's machines; of each machine the cores, the settings of its service, memory in bytes, and bits a second
    in the busiest hour (the busier way)."""

    machines: int
    cores: int
    workers: int
    sessions: int
    memory_bytes: float
    peak_bits: float


@dataclass(frozen=True)
class Capacity:
    """A plan. Bytes: `day_bytes` of all parties in a day, of which the operators send `sent_bytes`; `first_bytes` of
    masked weights to all users, once; `disk_bytes` of correlations at the servers. `within_s`: the bound that 95 % of
    the answers keep in `busiest`, the busiest hour with one server away. `alone_s`: seconds of a query to an idle
    service. Money is in the unit of the prices."""

    users: Users
    rented: Machines
    server: PartyNeeds
    dealer: PartyNeeds
    day_bytes: float
    sent_bytes: float
    first_bytes: float
    disk_bytes: float
    money_a_day: float
    money_a_thousand: float
    alone_s: float
    within_s: float
    busiest: BusyHour

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse_queries(text: str) -> float:
    """Queries a day of "20/day", "3/hour" or "2/minute". Errors: CapacityError."""
    rate = re.fullmatch(rf"(\d+(?:\.\d+)?)/({'|'.join(PER_DAY)})", text.strip())
    if rate is None or not float(rate[1]):
        raise CapacityError(f"queries {text}: not a rate; give a number above 0 and a unit, such as 20/day or 3/hour")
    return float(rate[1]) * PER_DAY[rate[2]]


def costs_of(price: Estimate) -> QueryCosts:
    """The costs in a query's price."""
    parts = {name: price.compute_s[name] for name in ("server_offline", "server_online", "client_offline")}
    client, dealer = price.compute_s["client_online"], price.compute_s["dealer_offline"]
    computing = max(parts["server_offline"], parts["client_offline"], dealer)
    return QueryCosts(
        **parts,
        client_online=client,
        dealer=dealer,
        offline_wait=max(0.0, price.offline_s - computing),
        online_wait=max(0.0, price.online_s - max(parts["server_online"], client)),
        opening=OPENING_TRIPS * price.rtt_s,
        up=price.up,
        down=price.down,
        passed_on=price.passed_on_bytes,
        offline_bytes=price.dealt_bytes,
    )


def plan_capacity(
    price: Estimate,
    users: Users,
    rented: Machines | None = None,
    *,
    query_bytes: float = 0.0,
    within: float | None = None,
) -> Capacity:
    """A plan for these users, checked by the formulas of queueing.py for the busiest hour.

    query_bytes   memory of a query that computes (most_memory); at least its correlations are counted
    within        seconds that 95 % of the busiest hour's answers may take; default: twice what one takes alone

    Errors: CapacityError for numbers out of range and where no number of servers keeps `within`.
    """
    rented = rented or Machines()
    _check(users, rented)
    live, stored = _over_uplink(costs_of(price), rented.uplink), users.stored
    alone = stored * live.stored().latency + (1 - stored) * live.latency
    within = PROMPTLY * live.latency if within is None else within
    if within < alone:
        raise CapacityError(
            f"within {within:g} s: one query alone takes {alone:.2f} s; allow more, or price a nearer --network"
        )
    rate, memory = users.a_second, max(query_bytes, price.held_bytes)
    work = rented.cores * rented.utilisation
    # What is made ahead is made evenly, day and night.
    dealt = rate * (1 - stored) + users.a_day * stored / DAY
    dealers = _machines(dealt * live.dealer / work, dealt * price.dealt_bytes, rented)
    carried = max(rate * (price.down + price.passed_on_bytes), rate * price.up + dealt * price.dealt_bytes)
    least = _machines(rate * live.server / work, carried, rented)
    fleet = Fleet(
        cores=rented.cores,
        uplink=rented.uplink,
        workers=_workers(rented, rate / (max(least, dealers) - 1) * live.worker_s),
        dealer_workers=_workers(rented, dealt / dealers * live.offline),
    )
    fleet = replace(fleet, sessions=min(MOST_SESSIONS, max(LEAST_SESSIONS, 2 * fleet.workers)))
    fleet, busiest = _enough(live, fleet, least, dealers, rate, stored, within)
    replicas, dealers = fleet.replicas, fleet.dealers

    def needs(machines: int, workers: int, sessions: int, weights: float, bits: float) -> PartyNeeds:
        memory_bytes = SERVICE_BYTES + weights + sessions * SESSION_BYTES + workers * memory
        return PartyNeeds(machines, rented.cores, workers, sessions, memory_bytes, 8 * bits / machines)

    shared = min(MOST_SESSIONS, fleet.sessions * math.ceil(replicas / dealers))
    sent = users.a_day * (price.down + price.offline_bytes)
    money = 24 * rented.core_hour * rented.cores * (replicas + dealers) + rented.gb * sent / 1e9
    return Capacity(
        users=users,
        rented=rented,
        # A server has its weights and the masked ones.
        server=needs(replicas, fleet.workers, fleet.sessions, 2.0 * price.setup_bytes, carried),
        dealer=needs(dealers, fleet.dealer_workers, shared, 0.0, dealt * price.dealt_bytes),
        day_bytes=users.a_day * (price.online_bytes + price.offline_bytes),
        sent_bytes=sent,
        first_bytes=float(users.users * price.setup_bytes),
        disk_bytes=float(users.users * users.ahead * price.dealt_bytes),
        money_a_day=money,
        money_a_thousand=1000 * money / users.a_day,
        alone_s=alone,
        within_s=within,
        busiest=busiest,
    )


def most_memory(work: Callable[[], T]) -> tuple[T, float]:
    """The result of `work`, and the bytes by which this process grew at most meanwhile (0 where the system does not
    say; Linux does)."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed before would be used again, and not be seen
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark is now's
    except (OSError, AttributeError):
        return work(), 0.0
    before = rss_mb()
    result = work()
    return result, max(0.0, peak_rss_mb() - before) * 2**20


def _check(users: Users, rented: Machines) -> None:
    wrong = {
        "users": users.users < 1,
        "queries": not 0 < users.queries < math.inf,
        "peak": not 1 / 24 <= users.peak <= 1,
        "ahead": users.ahead < 0,
        "cores": rented.cores < 1,
        "utilisation": not 0 < rented.utilisation < 1,
        "uplink": rented.uplink <= 0,
    }
    if bad := [name for name, is_bad in wrong.items() if is_bad]:
        value = getattr(users, bad[0], None) or getattr(rented, bad[0], 0)
        raise CapacityError(f"{bad[0]} {value:g}: out of range; peak is 1/24 to 1, utilisation below 1, others above 0")


def _over_uplink(costs: QueryCosts, uplink: float) -> QueryCosts:
    """Where the machines' uplink is narrower than the priced network."""
    online, offline = 8 * max(costs.up, costs.down) / uplink, 8 * max(costs.offline_bytes, costs.passed_on) / uplink
    return replace(
        costs,
        online_wait=max(costs.online_wait, online),
        offline_wait=max(costs.offline_wait, offline),
    )


def _machines(busy: float, sent: float, rented: Machines) -> int:
    """`busy`: machines whose cores it takes; `sent`: bytes a second, the busier way."""
    return max(LEAST_MACHINES, math.ceil(busy), math.ceil(8 * sent / (rented.utilisation * rented.uplink)))


def _workers(rented: Machines, busy: float) -> int:
    """`busy`: how many are, on average, in the busiest hour; each waits for the network, too."""
    return min(MOST_WORKERS, max(rented.cores, math.ceil(busy / rented.utilisation)))


def _enough(
    costs: QueryCosts, fleet: Fleet, least: int, dealers: int, rate: float, stored: float, within: float
) -> tuple[Fleet, BusyHour]:
    """The fleet that keeps `within` while one of its servers is away, and how."""
    group = max(1, least // dealers)  # servers that one dealer deals to, at most
    replicas = max(least, dealers)
    p95 = math.inf
    for _ in range(MOST_TRIES):
        fleet = replace(fleet, replicas=replicas, dealers=math.ceil(replicas / group))
        busiest = busy_hour(costs, replace(fleet, replicas=replicas - 1), rate, stored)
        if (p95 := busiest.latency_p95_s) <= within:
            return fleet, busiest
        replicas = max(replicas + 1, math.ceil(MORE * replicas))
    raise CapacityError(f"within {within:g} s: {replicas} servers still take {p95:.2f} s; allow more, or more --cores")
