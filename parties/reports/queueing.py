"""How long queries take at a busy service, by the formulas of queueing theory.

A query holds a worker of its server from its turn to its answer. First it waits for its correlations, which dealer,
server and client make at once, then the online phase runs. Clients dial servers at random, so each server is a queue of
its own with Poisson arrivals:

    cores and links   processor sharing. With k cores and a of them busy on average, a job of s seconds takes
                      s (1 + C(k, a) / (k - a)) on average; C is Erlang's formula. A link is one core. How what it
                      takes beyond s varies counts as exponential, or as waiting for a core, whichever is longer.
    workers           M/M/c: a query waits with probability C(c, a), then longer than t with exp(-(c - a) t / worker_s)

Quantiles of the delays are added, which is too long rather than too short: delays seldom meet.
tests/bench/test_service_simulation.py holds the formulas to a simulation, and `bench.capacity` that to a real service.

Source: Kleinrock, Queueing Systems, volume 1 (1975), sections 3.5 and 4.4.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

QUANTILES = (0.5, 0.95, 0.99)
MANY = 10_000  # of more, nobody waits for one


@dataclass(frozen=True)
class QueryCosts:
    """The costs of one query to an idle service. Seconds of CPU by party and phase; `_wait`: seconds that a phase
    takes beyond computing (the network's); `opening`: of a session, before its first query. Bytes: `up` from the client
    to the server and `down`, online; `offline_bytes` from the dealer to the server,
    which passes `passed_on` of them on to the client, also where they are preprocessed."""

    server_offline: float = 0.0
    server_online: float = 0.0
    client_offline: float = 0.0
    client_online: float = 0.0
    dealer: float = 0.0
    offline_wait: float = 0.0
    online_wait: float = 0.0
    opening: float = 0.0
    up: float = 0.0
    down: float = 0.0
    passed_on: float = 0.0
    offline_bytes: float = 0.0

    @property
    def server(self) -> float:
        return self.server_offline + self.server_online

    @property
    def client(self) -> float:
        return self.client_offline + self.client_online

    @property
    def offline(self) -> float:
        """Seconds until an idle service has correlations: so long a query holds a worker of the dealer."""
        return max(self.server_offline, self.client_offline, self.dealer) + self.offline_wait

    @property
    def worker_s(self) -> float:
        """Seconds that a query on live correlations holds a worker of an idle server."""
        return self.offline + max(self.server_online, self.client_online) + self.online_wait

    @property
    def latency(self) -> float:
        """Seconds from asking to the answer, of a session's only query to an idle service."""
        return self.opening + self.worker_s

    def stored(self) -> QueryCosts:
        """The costs of a query whose correlations are preprocessed."""
        return replace(self, dealer=0.0, offline_wait=0.0, offline_bytes=0.0)

    def times(self, factor: float) -> QueryCosts:
        return QueryCosts(**{name: factor * value for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Fleet:
    """Machines of `cores` cores each (a number or a fraction of one): servers (`replicas`), and dealers, each of which
    deals to some of the servers.

    A client dials any replica that runs. `workers`, `sessions`: settings of each server; `dealer_workers`: of each
    dealer. `uplink`: of each machine, bits a second each way.
    """

    replicas: int = 1
    dealers: int = 1
    cores: float = 4
    workers: int = 4
    sessions: int = 32
    dealer_workers: int = 4
    uplink: float = math.inf


@dataclass(frozen=True)
class BusyHour:
    """Latencies: seconds from asking to the answer; waits: until a worker is free; infinite where more comes than the
    fleet can take. Utilisation: of the cores; of the servers' uplinks, the busier way."""

    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    wait_p50_s: float
    wait_p95_s: float
    server_utilisation: float
    dealer_utilisation: float
    uplink_utilisation: float


def busy_hour(costs: QueryCosts, fleet: Fleet, rate: float, stored: float = 0.0) -> BusyHour:
    """`rate`: queries a second to the whole fleet; `stored`: the part of them whose correlations are preprocessed."""
    each, live = rate / fleet.replicas, rate * (1 - stored) / fleet.dealers
    entering = each * (costs.up + (1 - stored) * costs.offline_bytes)
    leaving = each * (costs.down + costs.passed_on)
    server = _Queue(fleet.cores, each * costs.server)
    dealer = _Queue(fleet.cores, live * costs.dealer)
    link = _Queue(1, 8 * max(entering, leaving) / fleet.uplink)
    dealer_link = _Queue(1, 8 * live * costs.offline_bytes / fleet.uplink)
    slow = costs.times(1.0)
    if math.inf not in (server.slowdown, dealer.slowdown, link.slowdown, dealer_link.slowdown):
        online = 8 * max(costs.up, costs.down) / fleet.uplink * link.slowdown
        moved = max(costs.offline_bytes, costs.passed_on)
        offline = 8 * moved / fleet.uplink * max(link.slowdown, dealer_link.slowdown)
        slow = replace(
            costs,
            server_offline=costs.server_offline * server.slowdown,
            server_online=costs.server_online * server.slowdown,
            dealer=costs.dealer * dealer.slowdown,
            online_wait=max(costs.online_wait, online),
            offline_wait=max(costs.offline_wait, offline),
        )
    # Preprocessed or live, a query holds a worker for so long on average.
    worker_s = stored * slow.stored().worker_s + (1 - stored) * slow.worker_s
    workers, dealing = _Queue(fleet.workers, each * worker_s), _Queue(fleet.dealer_workers, live * slow.offline)
    alone = costs.latency if stored < 1 else costs.stored().latency
    transfer = 8 * max(costs.up + costs.offline_bytes, costs.down + costs.passed_on) / fleet.uplink
    shared = [(server, costs.server), (dealer, costs.dealer), (link, transfer)]
    delayed = sum(queue.delay(seconds) for queue, seconds in shared)

    def latency(part: float) -> float:
        delay = max(-math.log(1 - part) * delayed, sum(queue.wait(part, seconds) for queue, seconds in shared))
        return alone + delay + workers.wait(part, worker_s) + dealing.wait(part, slow.offline)

    p50, p95, p99 = map(latency, QUANTILES)
    return BusyHour(
        latency_p50_s=p50,
        latency_p95_s=p95,
        latency_p99_s=p99,
        wait_p50_s=workers.wait(0.5, worker_s),
        wait_p95_s=workers.wait(0.95, worker_s),
        server_utilisation=server.load / server.count,
        dealer_utilisation=dealer.load / dealer.count,
        uplink_utilisation=link.load,
    )


def erlang_c(servers: int, offered: float) -> float:
    """The probability of having to wait: Erlang's C formula, by the recurrence of his B."""
    blocked = 1.0
    for number in range(1, servers + 1):
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))


@dataclass(frozen=True)
class _Queue:
    """`count` servers, of which `load` are busy on average."""

    count: float
    load: float

    @property
    def waits(self) -> float:
        """The probability that a job finds all busy. Of a fraction of a core: as of one core that is so slow."""
        if self.load >= self.count:
            return 1.0
        whole = max(1, math.floor(min(self.count, MANY)))
        return erlang_c(whole, self.load if whole == self.count else self.load * whole / self.count)

    @property
    def slowdown(self) -> float:
        """How many times as long a job takes as alone, on average, where jobs share."""
        return 1 + self.waits / (self.count - self.load) if self.load < self.count else math.inf

    def delay(self, seconds: float) -> float:
        """Seconds that a job of so many takes longer than alone, on average, where jobs share."""
        return (self.slowdown - 1) * seconds if seconds else 0.0

    def wait(self, part: float, seconds: float) -> float:
        """The quantile of waiting, of jobs that take so many seconds on average."""
        if not seconds:
            return 0.0
        if self.load >= self.count:
            return math.inf
        likely = self.waits / (1 - part)
        return seconds / (self.count - self.load) * math.log(likely) if likely > 1 else 0.0
