"""A service with many clients on a virtual clock: who waits, how long, and who is asked to retry later.

A query takes here what it takes in parties/session/two_party_server.py: it holds a worker until its answer. First it
waits for its correlations, which dealer, server and client make at once (in a session of several queries: while the
query before runs), then the online phase runs. Who gets a worker, who waits and who is asked to retry later is decided
by the services' own rules, parties/service/admission.py. All that computes on a machine shares its cores equally
(processor sharing), and all that travels there its link; beyond that a network only delays.

Left out: the CPU time of handshakes and of TLS, and failures of dealers. simpy is imported when something is simulated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from blindformer.parties.client.sessions import REOPEN_SECONDS
from blindformer.parties.reports.queueing import Fleet, QueryCosts
from blindformer.parties.service.admission import ServiceLimits
from blindformer.parties.session.compute_slots import SlotsBusy
from blindformer.protocols.errors import PeerGone

from .virtual import (
    Computes,
    Draws,
    Machine,
    OwnMachine,
    QueueingError,
    SharedRate,
    Slots,
    Steps,
    need_simpy,
)

if TYPE_CHECKING:
    import simpy

SLICES = 8  # of an online phase: in each both parties compute, then the network delays
WARM_UP = 0.1  # of the time: queries that were asked in it do not count, as the service began empty
SPREAD = 0.2  # a client comes back up to this part later than it was told to (parties/client/sessions.py)


@dataclass(frozen=True)
class SimulatedFleet(Fleet):
    """`queue`, `share`: settings of each server. `failure_s`: mean seconds until a replica fails; `restart_s`: until it
    is back. `one_machine`: all parties, clients too, share one machine's cores."""

    queue: int = 64
    share: float = 0.15
    failure_s: float = math.inf
    restart_s: float = 60.0
    one_machine: bool = False


@dataclass(frozen=True)
class Demand:
    """Who asks, for `seconds`: `rate` sessions of one query a second, at random (Poisson), each of another client; or,
    with `clients`, so many that ask again as soon as they are answered, each in one session.

    `wait`: seconds that a client goes on asking a busy service. `stored`: the part of queries whose correlations were
    made ahead. `factors`: a query takes its costs times one of them, drawn at random; none: its costs.
    """

    seconds: float
    rate: float = 0.0
    clients: int = 0
    wait: float = 60.0
    stored: float = 0.0
    factors: Sequence[float] = ()


@dataclass(frozen=True)
class Simulated:
    """What became of the queries: asked = answered + turned_away + lost.

    `retried`: queries that were asked to retry later at least once, of which those in `turned_away` gave up; `lost`: a
    replica failed twice under them, or none ran. Latencies: seconds from asking to the answer; waits: from asking until
    a worker was free. Utilisation: of the cores; of the servers' uplinks, the busier way.
    """

    asked: int
    answered: int
    retried: int
    turned_away: int
    lost: int
    per_second: float
    latency_mean_s: float
    latency_p50_s: float
    latency_p95_s: float
    latency_p99_s: float
    wait_mean_s: float
    wait_p50_s: float
    wait_p95_s: float
    server_utilisation: float
    dealer_utilisation: float
    uplink_utilisation: float


def simulate(costs: QueryCosts, fleet: SimulatedFleet, demand: Demand, seed: int = 0) -> Simulated:
    """The same figures for the same seed. Errors: QueueingError without simpy, or where nobody asks."""
    if demand.rate <= 0 and demand.clients <= 0:
        raise QueueingError("simulate: nobody asks; give a rate or clients above 0")
    return _Simulation(costs, fleet, demand, seed).run()


class _Dealer(NamedTuple):
    machine: Machine
    slots: Slots


@dataclass
class _Replica:
    name: str
    machine: Machine
    slots: Slots
    dealer: _Dealer
    runs: bool = True
    sessions: dict[int, _Session] = field(default_factory=dict)


@dataclass
class _Session:
    """`ahead`: the making of the next query's correlations; its value is an error or None."""

    child: int
    replica: _Replica
    client: Computes
    process: simpy.Process
    ahead: simpy.Process | None = None
    turn: float = 0.0  # when the last query got a worker


class _Simulation:
    def __init__(self, costs: QueryCosts, fleet: SimulatedFleet, demand: Demand, seed: int) -> None:
        self._simpy = need_simpy()
        env = self.env = self._simpy.Environment()
        self.costs, self.fleet, self.demand, self.draws = costs, fleet, demand, Draws(seed)
        self._children = count()
        self._shared = SharedRate(env, fleet.cores) if fleet.one_machine else None
        # A dealer lets as many sessions in as its servers do: a plan sets it so.
        many = min(10_000, fleet.sessions * math.ceil(fleet.replicas / fleet.dealers))
        dealt = ServiceLimits(workers=fleet.dealer_workers, sessions=many, queue=fleet.queue, share=1.0)
        self.dealers = [_Dealer(self._machine(), Slots(env, "dealer", dealt)) for _ in range(fleet.dealers)]
        self.replicas = [
            _Replica(str(number), self._machine(), self._slots(), self.dealers[number % fleet.dealers])
            for number in range(fleet.replicas)
        ]
        self.outcomes: list[tuple[str, float, float, float, bool]] = []  # what, asked, ended, waited, retried

    def _machine(self) -> Machine:
        return Machine(self.env, self.fleet.cores, self.fleet.uplink, self._shared)

    def _slots(self) -> Slots:
        fleet = self.fleet
        mine = ServiceLimits(workers=fleet.workers, sessions=fleet.sessions, queue=fleet.queue, share=fleet.share)
        return Slots(self.env, "server", mine)

    def run(self) -> Simulated:
        env, end = self.env, self.demand.seconds
        if math.isfinite(self.fleet.failure_s):
            for replica in self.replicas:
                env.process(self._fail(replica))
        everyone = env.process(self._everyone())
        env.run(until=end)
        servers, dealers = ([one.machine for one in ones] for ones in (self.replicas, self.dealers))
        used = [_used(one.cores for one in machines) / end for machines in (servers, dealers)]
        carried = max(_used(one.entering for one in servers), _used(one.leaving for one in servers)) / end
        if everyone.is_alive:
            env.run(until=everyone)
        return self._figures(used[0], used[1], carried)

    def _everyone(self) -> Steps:
        """Until the last client has its answer."""
        env, demand = self.env, self.demand
        visits = [env.process(self._visit(f"{number}")) for number in range(demand.clients)]
        while demand.rate:
            yield env.timeout(self.draws.exponential(1.0 / demand.rate))
            if env.now >= demand.seconds:
                break
            visits.append(env.process(self._visit(f"{len(visits)}")))
        yield self._simpy.AllOf(env, visits)

    def _visit(self, owner: str) -> Steps:
        """A client's one session: a query, or one after the other until the time is over."""
        env, demand = self.env, self.demand
        client = self._shared or OwnMachine(env)
        session: _Session | None = None
        while True:
            costs = self._drawn()
            began, deadline, lost, retried, outcome = env.now, env.now + demand.wait, False, False, ""
            more = demand.clients > 0
            while not outcome:
                try:
                    if session is None:
                        session = self._open(owner, client)
                        yield env.timeout(costs.opening)
                    yield from self._query(session, costs, more)
                    outcome = "answered"
                except SlotsBusy as busy:
                    retried = True
                    if (left := deadline - env.now) <= 0:
                        outcome = "turned away"
                    else:
                        later = busy.retry_after * (1 + SPREAD * self.draws.uniform())
                        session = yield from self._rest(session, min(left, later))
                except PeerGone:
                    if not lost or env.now + REOPEN_SECONDS > deadline:
                        outcome = "lost"
                    else:
                        yield env.timeout(REOPEN_SECONDS)
                except self._simpy.Interrupt:  # the replica failed
                    session, outcome, lost = None, "lost" if lost else "", True
            waited = session.turn - began if session is not None else 0.0
            self.outcomes.append((outcome, began, env.now, waited, retried))
            if not more or env.now >= demand.seconds:
                break
        if session is not None:
            self._close(session)

    def _drawn(self) -> QueryCosts:
        costs, demand = self.costs, self.demand
        if demand.stored and self.draws.uniform() < demand.stored:
            costs = costs.stored()
        return costs.times(self.draws.choice(demand.factors)) if demand.factors else costs

    def _open(self, owner: str, client: Computes) -> _Session:
        running = [replica for replica in self.replicas if replica.runs]
        if not running:
            raise PeerGone("server", "no replica runs", "wait until one is back")
        replica = self.draws.choice(running)
        child = next(self._children)
        replica.slots.open(child, owner)
        try:
            replica.dealer.slots.open(child, replica.name)
        except SlotsBusy:
            replica.slots.leave(child)
            raise
        assert self.env.active_process is not None
        session = replica.sessions[child] = _Session(child, replica, client, self.env.active_process)
        return session

    def _close(self, session: _Session) -> None:
        replica, child = session.replica, session.child
        if session.ahead is not None and session.ahead.is_alive:
            session.ahead.interrupt()
        replica.sessions.pop(child, None)
        replica.slots.leave(child)
        replica.dealer.slots.leave(child)

    def _rest(self, session: _Session | None, seconds: float) -> Steps:
        """The session as it is after so many seconds: None if there is none, or its replica failed meanwhile."""
        try:
            yield self.env.timeout(seconds)
        except self._simpy.Interrupt:
            return None
        return session

    def _query(self, session: _Session, costs: QueryCosts, more: bool) -> Steps:
        env, server, client = self.env, session.replica, session.client
        yield server.slots.want(session.child)
        session.turn = env.now
        ahead = session.ahead
        busy = (yield from self._correlations(session, costs)) if ahead is None else (yield ahead)
        session.ahead = None
        if busy is not None:
            server.slots.release(session.child)
            raise busy
        if more:
            session.ahead = env.process(self._correlations(session, self._drawn(), aside=True))
        part, machine = costs.times(1 / SLICES), server.machine
        for _ in range(SLICES):
            yield machine.cores.work(part.server_online) & client.work(part.client_online)
            yield self._simpy.AllOf(env, [env.timeout(part.online_wait), *machine.carry(part.up, part.down)])
        server.slots.release(session.child)

    def _correlations(self, session: _Session, costs: QueryCosts, aside: bool = False) -> Steps:
        """All three parties make a query's correlations. `aside`: in a process of its own. The dealer may be busy: then
        the value is an error to raise."""
        server, dealer = session.replica, session.replica.dealer
        try:
            parts = [session.client.work(costs.client_offline)]
            if costs.dealer:
                try:
                    yield dealer.slots.want(session.child)
                except SlotsBusy as busy:
                    return busy
                parts.append(dealer.machine.cores.work(costs.dealer))
            yield self._simpy.AllOf(self.env, [*parts, server.machine.cores.work(costs.server_offline)])
            carried = [*dealer.machine.carry(leaving=costs.offline_bytes), *server.machine.carry(costs.offline_bytes)]
            yield self._simpy.AllOf(self.env, [self.env.timeout(costs.offline_wait), *carried])
            if costs.dealer:
                dealer.slots.release(session.child)
        except self._simpy.Interrupt:
            if not aside:
                raise
        return None

    def _fail(self, replica: _Replica) -> Steps:
        while True:
            yield self.env.timeout(self.draws.exponential(self.fleet.failure_s))
            replica.runs = False
            replica.machine.drop()
            for session in list(replica.sessions.values()):
                self._close(session)
                session.process.interrupt()
            yield self.env.timeout(self.fleet.restart_s)
            replica.slots, replica.runs = self._slots(), True

    def _figures(self, servers: float, dealers: float, carried: float) -> Simulated:
        warm = WARM_UP * self.demand.seconds
        counted = [outcome for outcome in self.outcomes if outcome[1] >= warm]
        answered = [outcome for outcome in counted if outcome[0] == "answered"]
        latencies = sorted(ended - began for _, began, ended, _, _ in answered)
        waits = sorted(waited for *_, waited, _ in answered)
        inside = sum(
            what == "answered" and warm <= ended <= self.demand.seconds for what, _, ended, *_ in self.outcomes
        )
        return Simulated(
            asked=len(counted),
            answered=len(answered),
            retried=sum(retried for *_, retried in counted),
            turned_away=sum(what == "turned away" for what, *_ in counted),
            lost=sum(what == "lost" for what, *_ in counted),
            per_second=inside / (self.demand.seconds - warm),
            latency_mean_s=_mean(latencies),
            latency_p50_s=_quantile(latencies, 0.5),
            latency_p95_s=_quantile(latencies, 0.95),
            latency_p99_s=_quantile(latencies, 0.99),
            wait_mean_s=_mean(waits),
            wait_p50_s=_quantile(waits, 0.5),
            wait_p95_s=_quantile(waits, 0.95),
            server_utilisation=servers,
            dealer_utilisation=dealers,
            uplink_utilisation=carried,
        )


def _used(parts: Iterable[SharedRate]) -> float:
    """Seconds in use, of all that could be used at once."""
    rates = list(parts)
    return sum(one.busy for one in rates) / sum(one.cores for one in rates)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _quantile(values: Sequence[float], part: float) -> float:
    """Of sorted values."""
    return values[max(0, math.ceil(part * len(values)) - 1)] if values else math.nan
